"""A config while it is being written: its values, comments beside them, and what there is to say of it."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

from easydistill.config.reading.nodes import Node
from easydistill.config.values import KeyPath, dotted
from easydistill.errors import ConfigError, ConfigIssue

WIDTH = 110
API_KEY = "${env:API_KEY}"
_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")


class WrongValue(ValueError):
    """A value of the old config that its own version could not have taken."""

    def __init__(self, where: str, value: Any, wanted: str) -> None:
        self.where, self.value, self.wanted = where, value, wanted
        super().__init__(f"{where}: {wanted} is needed here")


_WANTED = {dict: "a section", list: "a list", str: "text", int: "a whole number", float: "a number"}


def pop(section: dict[str, Any], name: str, kind: type, where: str, default: Any = None) -> Any:
    """Take a value out of a section; `default` where there is none, or null.

    Raises:
        WrongValue: it is not of that kind.
    """
    value = section.pop(name, None)
    if value is None:
        return default
    return of_kind(value, kind, f"{where}.{name}")


def of_kind(value: Any, kind: type, where: str) -> Any:
    """The value, if it is of that kind; raises WrongValue otherwise."""
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise WrongValue(where, value, _WANTED[kind])
    return value


@dataclass
class Draft:
    """What will be written, and what was decided on the way."""

    config: dict[str, Any]
    comments: dict[KeyPath, str] = field(default_factory=dict)
    """Comment above the key at each path."""
    mapped: list[str] = field(default_factory=list)
    """What is called otherwise now."""
    changed: list[str] = field(default_factory=list)
    """What works otherwise, and why."""
    left_out: list[str] = field(default_factory=list)
    """What has no equal, and why."""

    def change(self, path: KeyPath, text: str) -> None:
        """Say that something works otherwise: on screen, and in the file above the key at `path`."""
        self.changed.append(f"{dotted(path)}: {text}" if path else text)
        self.comment(path, text)

    def comment(self, path: KeyPath, text: str) -> None:
        """Add to the comment above the key at `path`; at the empty path, at the file's head."""
        text = text[0].upper() + text[1:] + "." * (text[-1] not in ".:")
        self.comments[path] = f"{self.comments[path]} {text}" if path in self.comments else text

    def environment(self) -> list[str]:
        """Environment variables that the config names."""
        return list(dict.fromkeys(_REFERENCE.findall(json.dumps(self.config))))

    def text(self) -> str:
        """JSON with comments."""
        head = _comment(self.comments[()], "") if () in self.comments else []
        return "\n".join([*head, *self._value(self.config, (), "")]) + "\n"

    def _value(self, value: Any, path: KeyPath, indent: str) -> list[str]:
        """Lines of a value; the first has no indentation, for it stands after a key."""
        if not isinstance(value, dict) or not value:
            return [json.dumps(value, ensure_ascii=False)]
        inner = f"{indent}  "
        lines = ["{"]
        for number, (key, item) in enumerate(value.items(), start=1):
            here = (*path, key)
            first, *rest = self._value(item, here, inner)
            lines += _comment(self.comments[here], inner) if here in self.comments else []
            lines += [f"{inner}{json.dumps(key, ensure_ascii=False)}: {first}", *rest]
            lines[-1] += "," * (number < len(value))
        return [*lines, f"{indent}}}"]


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}// "
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )


class Old:
    """The old config; remembers what was read of it."""

    def __init__(self, document: Node) -> None:
        self.document = document
        self._rest: dict[str, Any] = document.plain()
        self.issues: list[ConfigIssue] = []

    def take(self, *path: str | int, default: Any = None) -> Any:
        """The value at a path, which then counts as read; `default` where there is none."""
        above = self._at(path[:-1])
        if not isinstance(above, dict) or path[-1] not in above:
            return default
        return above.pop(path[-1])

    def section(self, *path: str | int) -> dict[str, Any]:
        """The section at a path, which then counts as read; empty where there is none.

        Raises:
            ConfigError: it is no section.
        """
        value = self.take(*path)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(self.document.issue(path, "a section is needed here", "write keys and values"))
        return value or {}

    def refuse(self, path: KeyPath, problem: str, hint: str) -> None:
        """Remember what stands in the way of writing anything."""
        self.issues.append(self.document.issue(path, problem, hint))

    def refuse_unread(self, left: dict[str, Any], *above: str | int) -> None:
        """Refuse the keys that are left of a section."""
        for key in left:
            problem = "this key has no equal here, and what it does is not known"
            self.refuse((*above, key), problem, "remove it from the old file if it had no effect")

    def close(self) -> None:
        """Refuse whatever was never read.

        Raises:
            ConfigError: anything was refused.
        """
        self.refuse_unread(self._rest)
        if self.issues:
            raise ConfigError(sorted(self.issues, key=lambda issue: issue.where))

    def _at(self, path: KeyPath) -> Any:
        value: Any = self._rest
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value


def without_key(inference: dict[str, Any], draft: Draft, path: KeyPath) -> None:
    """Have a key that stood in the file come from the environment: files are shared, keys are not."""
    key = inference.get("api_key")
    if isinstance(key, str) and key != "EMPTY" and "$" not in key:
        inference["api_key"] = API_KEY
        draft.change((*path, "api_key"), "the key is taken from the environment, and not copied: export API_KEY=…")
