"""`--set training.learning_rate=1e-5`: single values from the command line over a loaded config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from easydistill.config.reading.aliases import KEY_ALIASES
from easydistill.config.reading.document import MAX_DEPTH, OVERRIDE, Document, KeyPath, dotted, show
from easydistill.errors import ConfigIssue


def _value(text: str) -> Any:
    """JSON where it parses as JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[ConfigIssue]:
    """Write each `dotted.path=value` into the document, in order.

    Returns:
        An issue for each override that is not of that form, or whose path runs through what is not a section.
    """
    issues: list[ConfigIssue] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        written: KeyPath = tuple(part.strip() for part in name.split("."))
        if not equals or not all(written) or len(written) > MAX_DEPTH:
            problem = f"{show(name)} is not of the form path=value"
            issues.append(ConfigIssue(OVERRIDE, "", problem, "e.g. --set training.learning_rate=1e-5"))
            continue
        path = KEY_ALIASES.get(written, written)
        try:
            made = _write(document.data, path, _value(text))
        except _NotASection as error:
            problem = f"{dotted(error.path)} is {show(error.value, error.path)}, not a section"
            mend = f"set {dotted(error.path)} as a whole, e.g. --set '{dotted(error.path)}={{\"{path[-1]}\": …}}'"
            issues.append(ConfigIssue(OVERRIDE, name, problem, mend))
            continue
        document.overridden.add(made)
        document.renamed.pop(path, None)
        if path != written:
            document.renamed[path] = written
    return issues


class _NotASection(Exception):
    def __init__(self, path: KeyPath, value: Any) -> None:
        self.path, self.value = path, value


def _write(data: dict[str, Any], path: KeyPath, value: Any) -> KeyPath:
    """Set a value; returns its path, or that of the outermost section made for it."""
    target: Any = data
    made = path
    for end, part in enumerate(path[:-1], start=1):
        if part not in target:
            made = min(made, path[:end], key=len)
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise _NotASection(path[:end], target)
    target[path[-1]] = value
    return made
