"""A parsed config before it is validated: plain data, and for every value where its author wrote it.

What a person is shown of a value (`show`) never holds a secret.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from easydistill.config.base import SECRET_KEYS
from easydistill.errors import ConfigError, ConfigIssue

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 100
OVERRIDE = "--set"
HIDDEN = "(hidden)"
_SHOWN = 60
_URL_PASSWORD = re.compile(r"(://)[^/@\s]+@")


def dotted(path: KeyPath) -> str:
    """`training.learning_rate`."""
    return ".".join(map(str, path))


def is_secret(path: KeyPath) -> bool:
    """Whether the value at `path` must not be shown."""
    return any(part in SECRET_KEYS for part in path)


def syntax_error(where: str, problem: str, mend: str = "") -> ConfigError:
    """An error of the file as a whole."""
    return ConfigError(ConfigIssue(where, "", problem, mend))


@dataclass
class Document:
    """A config as written."""

    name: str
    """The file's path, or `config` where there is no file."""
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """The 1-based line of each path."""
    overridden: set[KeyPath] = field(default_factory=set)
    """Paths that came from `--set`."""
    renamed: dict[KeyPath, KeyPath] = field(default_factory=dict)
    """Path now → path as its author wrote it, for keys given under an old name."""
    old_job_type: str = ""
    """EasyDistill 1's name of the job, where its configs say more than the job does that it is now."""
    notes: list[str] = field(default_factory=list)
    """What was read under another name or in another way than it is written, for the screen."""

    def line(self, path: KeyPath) -> int:
        """The line of a path, or of its nearest ancestor that stands in the file; 0 for an override."""
        if self._is_overridden(path):
            return 0
        return next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), 0)

    def where(self, path: KeyPath) -> str:
        """`file:line`, or `--set`."""
        if self._is_overridden(path):
            return OVERRIDE
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name

    def _is_overridden(self, path: KeyPath) -> bool:
        return any(path[:end] in self.overridden for end in range(1, len(path) + 1))

    def spelled(self, path: KeyPath) -> str:
        """The dotted path as its author wrote it."""
        return dotted(self.renamed.get(path, path))

    def issue(self, path: KeyPath, problem: str, mend: str = "") -> ConfigIssue:
        """An issue with the value at `path`."""
        return ConfigIssue(self.where(path), self.spelled(path), problem, mend)

    def note(self, path: KeyPath, text: str) -> None:
        """Remember something to be said of the value at `path`, which is named as its author wrote it."""
        self.notes.append(f"{self.where(path)}: {self.spelled(path)} {text}")

    def at(self, path: KeyPath) -> Any:
        """The value at `path` as written; None where there is none."""
        value: Any = self.data
        for part in path:
            inside_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
            if not inside_list and not (isinstance(value, dict) and part in value):
                return None
            value = value[part]
        return value


def show(value: Any, path: KeyPath = ()) -> str:
    """A value in a message: as JSON, short, secrets hidden."""
    if is_secret(path):
        return HIDDEN
    try:
        text = json.dumps(_without_secrets(value), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = _URL_PASSWORD.sub(r"\1(hidden)@", text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if key in SECRET_KEYS else _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    # Text that holds a secret's key is a section that failed to parse.
    if isinstance(value, str) and any(key in value for key in SECRET_KEYS):
        return HIDDEN
    return value
