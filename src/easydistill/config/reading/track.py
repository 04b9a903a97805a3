"""`track` as a list of sinks becomes a section with a key for each, as it may be written too."""

from __future__ import annotations

from easydistill.config.reading.nodes import Issues, Node
from easydistill.config.values import show

_HINT = 'name the sinks: ["tensorboard"], or with keys of their own ["tensorboard", {"wandb": {"project": "kd"}}]'


def name_sinks(root: Node, issues: Issues) -> None:
    """Turn the list at `track` into a section, in place. Items that name no sink, or one again, are issues."""
    track = root.find(("track",))
    if track is None or not isinstance(track.value, list):
        return
    found: dict[str, Node] = {}
    for item in track.value:
        for name, section in _named(item, issues):
            if name in found:
                issues.add(item, f"{show(name)} is named twice", "keep one of them")
            found.setdefault(name, section)
    track.value = found


def _named(item: Node, issues: Issues) -> list[tuple[str, Node]]:
    """The sinks that an item of the list names, each with its section."""
    if isinstance(item.value, str):
        return [(item.value, Node({}, item.path, item.source, item.line))]
    if isinstance(item.value, dict):
        return list(item.value.items())
    issues.add(item, f"a sink's name is needed here, not {show(item.plain())}", _HINT)
    return []
