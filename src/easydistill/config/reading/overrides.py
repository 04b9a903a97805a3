"""`--set training.learning_rate=1e-5`: single values from the command line over a loaded config."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from easydistill.config.reading.aliases import use_current_names
from easydistill.config.reading.nodes import MAX_DEPTH, OVERRIDE, Issues, Node, tree
from easydistill.config.values import dotted, show
from easydistill.errors import ConfigIssue

_DOT = re.compile(r"\.(?!/|\./|py(?::\w+)?(?:\.|$))")
"""A dot between two keys, and not one of the path of a plain file: `rewards.my_rewards.py:brevity.weight`."""


def _value(text: str) -> Any:
    """JSON where it parses as JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def apply_overrides(root: Node, overrides: Sequence[str], issues: Issues) -> list[ConfigIssue]:
    """Write each `dotted.path=value` into a config that uses current names, in order.

    Returns:
        An issue for each override that is not of that form, or whose path leads through a value that is not a section.
    """
    unusable: list[ConfigIssue] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        path = [part.strip() for part in _DOT.split(name)]
        if not equals or not all(path) or len(path) > MAX_DEPTH:
            problem = f"{show(name)} is not of the form path=value"
            unusable.append(ConfigIssue(OVERRIDE, "", problem, "e.g. --set training.learning_rate=1e-5"))
            continue
        value = _value(text)
        for part in reversed(path):
            value = {part: value}
        given = tree(value, OVERRIDE)
        use_current_names(given, issues)
        if blocked := _graft(root, given, len(path)):
            above = dotted(blocked.path)
            problem = f"{above} is {show(blocked.plain(), blocked.path)}, not a section"
            hint = f"set {above} as a whole, e.g. --set '{above}={{\"{path[-1]}\": …}}'"
            unusable.append(ConfigIssue(OVERRIDE, name, problem, hint))
    return unusable


def _graft(into: Node, given: Node, depth: int) -> Node | None:
    """Put the values `depth` levels down in `given` into the config. Returns the node that blocks this: no section."""
    if not isinstance(into.value, dict):
        return into
    for key, item in given.value.items():
        if key not in into.value or len(item.path) == depth:
            into.value[key] = item
        elif blocked := _graft(into.value[key], item, depth):
            return blocked
    return None
