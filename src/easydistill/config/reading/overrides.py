"""`--set training.learning_rate=1e-5`: single values from the command line over a loaded config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from easydistill.config.reading.aliases import use_current_names
from easydistill.config.reading.nodes import MAX_DEPTH, OVERRIDE, Issues, Node, tree
from easydistill.config.values import dotted, show
from easydistill.errors import ConfigIssue


def _value(text: str) -> Any:
    """JSON where it parses as JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def apply_overrides(root: Node, overrides: Sequence[str], issues: Issues) -> list[ConfigIssue]:
    """Write each `dotted.path=value` into a config that uses current names, in order.

    Returns:
        An issue for each override that is not of that form, or whose path runs through what is not a section.
    """
    unusable: list[ConfigIssue] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        path = [part.strip() for part in name.split(".")]
        if not equals or not all(path) or len(path) > MAX_DEPTH:
            problem = f"{show(name)} is not of the form path=value"
            unusable.append(ConfigIssue(OVERRIDE, "", problem, "e.g. --set training.learning_rate=1e-5"))
            continue
        value = _value(text)
        for part in reversed(path):
            value = {part: value}
        given = tree(value, OVERRIDE)
        use_current_names(given, issues)
        if problem := _graft(root, given, path):
            unusable.append(problem)
    return unusable


def _graft(root: Node, given: Node, path: list[str]) -> ConfigIssue | None:
    """Put what `given` holds at the end of `path` into the config, or say why that is impossible."""
    target = root
    for depth in range(1, len(path) + 1):
        ((key, given),) = given.value.items()
        if depth == len(path) or key not in target.value:
            target.value[key] = given
            return None
        target = target.value[key]
        if not isinstance(target.value, dict):
            above = dotted(tuple(path[:depth]))
            problem = f"{above} is {show(target.plain(), tuple(path[:depth]))}, not a section"
            hint = f"set {above} as a whole, e.g. --set '{above}={{\"{path[-1]}\": …}}'"
            return ConfigIssue(OVERRIDE, dotted(tuple(path)), problem, hint)
    return None
