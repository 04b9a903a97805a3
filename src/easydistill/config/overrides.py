"""`--set training.learning_rate=1e-5`: single values from the command line over a loaded config."""

from __future__ import annotations

import json
from typing import Any

from easydistill.config.syntax import Document, KeyPath
from easydistill.errors import ConfigError, ConfigIssue

WHERE = "--set"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def apply_overrides(document: Document, overrides: list[str]) -> set[KeyPath]:
    """Write each `dotted.path=value` into the document; a value is JSON where it parses as JSON, else text.

    Returns:
        The paths that were set.

    Raises:
        ConfigError: an override is not of that form, or its path runs through something that is not a section.
    """
    paths: set[KeyPath] = set()
    issues: list[ConfigIssue] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        parts = tuple(part.strip() for part in name.split("."))
        if not equals or not all(parts):
            problem = f"{name!r} is not of the form path=value"
            issues.append(ConfigIssue(WHERE, "", problem, "e.g. --set training.learning_rate=1e-5"))
            continue
        target: Any = document.data
        for part in parts[:-1]:
            child = target.setdefault(part, {})
            if not isinstance(child, dict):
                problem = f"{part} is {child!r}, not a section"
                issues.append(ConfigIssue(WHERE, name, problem, "set the whole value with JSON instead"))
                break
            target = child
        else:
            target[parts[-1]] = _value(text)
            paths.add(parts)
            document.lines.pop(parts, None)
    if issues:
        raise ConfigError(issues)
    return paths
