"""Plain files that a config names as extensions are relative to its own folder: `my_rewards.py:brevity`.

Here each name is written anew, relative to the working directory, which is how the rest of the program and its other
processes read paths. The files are loaded when the config is typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from easydistill.config.reading.nodes import Node
from easydistill.errors import ConfigError
from easydistill.plain_files import Reference, is_reference
from easydistill.registry import REGISTRIES

_KEYS = {"rewards": "rewards", "metrics": "metrics", "track": "sinks"}
"""Sections whose keys are names of extensions, and of which kind."""
_VALUES = {"distillation_type": "losses", "backend": "teachers", "task": "tasks", "job_type": "jobs"}
"""Keys whose values are."""


def place_files(node: Node, key: str | int = "") -> None:
    """Write the files that a config names, in all of its sections, as they are found from here; in place.

    Args:
        key: under which the node stands.
    """
    if isinstance(node.value, list):
        for number, item in enumerate(node.value):
            place_files(item, number)
    if not isinstance(node.value, dict):
        return
    if key in _KEYS:
        node.value = {_placed(name, item): item for name, item in node.value.items()}
    for name, item in node.value.items():
        if name in _VALUES and isinstance(item.value, str):
            item.value = _placed(item.value, item)
        place_files(item, name)


def placed_elsewhere(value: Any, place: Callable[[Reference], Reference], key: str | int = "") -> Any:
    """A copy of a config, as plain data, with other places of the files that it names as extensions.

    Args:
        key: under which the value stands.
    """

    def placed(text: Any) -> Any:
        found = Reference.read(text) if isinstance(text, str) else None
        return text if found is None else str(place(found))

    if isinstance(value, list):
        return [placed_elsewhere(item, place, number) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return placed(value) if key in _VALUES else value
    named = {placed(name) if key in _KEYS else name: item for name, item in value.items()}
    return {name: placed_elsewhere(item, place, name) for name, item in named.items()}


def _placed(text: str, node: Node) -> str:
    """A name of the config; a file's as seen from the working directory."""
    found = Reference.read(text)
    # An override, and a config from Python, have no folder.
    return text if found is None else str(found.beside(Path(node.source).parent if node.line else Path()))


def check_files_of_jobs(nodes: Iterable[Node], classes: Mapping[str, type]) -> None:
    """Refuse jobs of plain files that cannot be used: nothing else of such a job can be checked.

    Raises:
        ConfigError: there are some.
    """
    found = []
    for node in nodes:
        job_type = node.at(("job_type",))
        try:
            if is_reference(job_type):
                classes[job_type]
        except ConfigError as error:
            found += [node.issue(("job_type",), issue.problem, issue.hint) for issue in error.issues]
    if found:
        raise ConfigError(found)


def file_section(section: str | int, name: str | int) -> type | None:
    """The class of a loaded file's section; None if there is none.

    Args:
        section: the key of the section that holds it.
        name: the file's name, as `place_files` has written it.
    """
    kinds = [_KEYS[str(section)]] if section in _KEYS else list(_VALUES.values())
    found = (REGISTRIES[kind].section_from_file(str(name)) for kind in kinds if kind in REGISTRIES)
    return next((cls for cls in found if cls is not None), None)
