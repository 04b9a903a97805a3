"""A config as its author wrote it: a tree of values, each of which knows where it was written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from easydistill.config.values import KeyPath, dotted
from easydistill.errors import ConfigError, ConfigIssue

MAX_DEPTH = 100
OVERRIDE = "--set"


def syntax_error(where: str, problem: str, hint: str = "") -> ConfigError:
    """An error of the file as a whole."""
    return ConfigError(ConfigIssue(where, "", problem, hint))


@dataclass(slots=True)
class Node:
    """A value and its origin, which it keeps when it is renamed or shared between jobs."""

    value: Any
    """A dict or list of nodes, or a plain value."""
    path: KeyPath = ()
    """As its author spelled it."""
    source: str = "config"
    """The file's path, `--set`, or `config` where there is neither."""
    line: int = 0
    """1-based; 0 outside of files."""

    def __post_init__(self) -> None:
        if len(self.path) > MAX_DEPTH:
            raise syntax_error(self.where, f"nested deeper than {MAX_DEPTH} levels", "no config needs that")

    @property
    def where(self) -> str:
        """`file:line`, `--set` or `config`."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def child(self, part: str | int, line: int) -> Node:
        """An empty node below this one."""
        return Node(None, (*self.path, part), self.source, line)

    def nearest(self, path: KeyPath) -> tuple[Node, KeyPath]:
        """The node at `path` below this one, or its closest ancestor and the rest of the path, which does not exist."""
        node = self
        for depth, part in enumerate(path):
            inside_list = isinstance(node.value, list) and isinstance(part, int) and part < len(node.value)
            if not inside_list and not (isinstance(node.value, dict) and part in node.value):
                return node, path[depth:]
            node = node.value[part]
        return node, ()

    def find(self, path: KeyPath) -> Node | None:
        """The node at `path`; None where there is none."""
        node, missing = self.nearest(path)
        return None if missing else node

    def section(self, path: KeyPath) -> dict[str, Node]:
        """The nodes of the section at `path`, by key, to be changed in place; empty where there is none."""
        node = self.find(path)
        return node.value if node is not None and isinstance(node.value, dict) else {}

    def at(self, path: KeyPath) -> Any:
        """The plain value at `path`; None where there is none."""
        node = self.find(path)
        return None if node is None else node.plain()

    def issue(self, path: KeyPath, problem: str, hint: str = "") -> ConfigIssue:
        """An issue with the value at `path`, or with its absence."""
        nearest, missing = self.nearest(path)
        return ConfigIssue(nearest.where, dotted((*nearest.path, *missing)), problem, hint)

    def plain(self) -> Any:
        """A copy without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def tree(
    value: Any, source: str, lines: Mapping[KeyPath, int] | None = None, path: KeyPath = (), line: int = 0
) -> Node:
    """Nodes for plain data. A path without a line of its own has that of its closest ancestor."""
    node = Node(value, path, source, (lines or {}).get(path, line))
    if isinstance(value, dict):
        node.value = {key: tree(item, source, lines, (*path, key), node.line) for key, item in value.items()}
    elif isinstance(value, list):
        node.value = [tree(item, source, lines, (*path, index), node.line) for index, item in enumerate(value)]
    return node


def from_mapping(source: Mapping[str, Any]) -> Node:
    """A config from Python; paths may be `Path` objects.

    Raises:
        ConfigError: it cannot be written as JSON, or is nested too deeply.
    """
    try:
        return tree(json.loads(json.dumps(dict(source), default=os.fspath)), "config")
    except ConfigError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        hint = "use only dict, list, str, numbers, bool, None"
        raise syntax_error("config", f"it cannot be written as JSON: {error}", hint) from None


class Issues:
    """What is wrong with a config. Of each place, the first report is kept: checks run from specific to general."""

    def __init__(self) -> None:
        self._found: dict[KeyPath, tuple[int, ConfigIssue]] = {}
        self.notes: list[str] = []
        """What was read under another name or in another way than it is written, for the screen."""

        self._job = ""
        self._jobs: dict[KeyPath, list[str]] = {}
        """The jobs in which a value of `shared` is wrong."""

    @contextlib.contextmanager
    def of_job(self, name: str) -> Iterator[None]:
        """Reports of what is wrong in a pipeline's job."""
        self._job = name
        try:
            yield
        finally:
            self._job = ""

    def add(self, node: Node, problem: str, hint: str = "", path: KeyPath = ()) -> None:
        """Report the value at `path` below `node`, or that it is missing there."""
        nearest, missing = node.nearest(path)
        place = (*nearest.path, *missing)
        first = place not in self._found
        self._found.setdefault(place, (nearest.line, node.issue(path, problem, hint)))
        same = self._found[place][1].problem == problem
        # What is shared is written in one place, and wrong in the jobs that it was given to.
        if self._job and nearest.path[:1] != ("jobs",) and (first or (same and place in self._jobs)):
            self._jobs.setdefault(place, []).append(self._job)

    def note(self, node: Node, text: str) -> None:
        """Remember something to say of a value, which is named as its author wrote it."""
        self.notes.append(f"{node.where}: {dotted(node.path)} {text}")

    def in_order(self) -> list[ConfigIssue]:
        """By line; overrides, which have none, come first."""
        order = sorted(self._found.items(), key=lambda found: found[1][0])
        return [self._naming(issue, self._jobs.get(place, [])) for place, (_, issue) in order]

    @staticmethod
    def _naming(issue: ConfigIssue, jobs: list[str]) -> ConfigIssue:
        if not jobs:
            return issue
        return replace(issue, problem=f"{issue.problem} (job{'s' * (len(jobs) > 1)} {', '.join(jobs)})")
