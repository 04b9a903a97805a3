"""`models` and `data` of a pipeline: what is given to it, under names that its jobs cite as `@models/student` or
`@data/prompts`. So one value, in the file or by `--set models.student=…`, reaches every job that uses it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from easydistill.config.pipeline import GIVEN
from easydistill.config.reading.diagnose import closest
from easydistill.config.reading.nodes import OVERRIDE, Issues, Node
from easydistill.config.values import KeyPath

_CITED = re.compile(rf"@({'|'.join(GIVEN)})/(\S+)")
_RELATIVE = re.compile(r"(?!/|~|@|\$|[A-Za-z]:[\\/]|\w+://)")
"""The beginning of a relative path."""


def fill_in(root: Node, jobs: Mapping[str, Node], issues: Issues) -> None:
    """Put what is given in the place of its citations, in a pipeline's jobs and shared sections."""
    if not jobs:
        return
    # A job may be called `data`, as long as nothing is given under that name.
    kinds = {kind for kind in GIVEN if kind in root.value or kind not in jobs}
    for kind in kinds & jobs.keys():
        issues.add(jobs[kind], f"a job cannot be called {kind!r} where the pipeline has {kind} of its own", "rename it")
    for node in root.section(("data",)).values():
        _place(node)
    given = {(kind, name): node for kind in kinds for name, node in root.section((kind,)).items()}
    used: set[tuple[str, str]] = set()
    for node in _citations([*root.section(("shared",)).values(), *jobs.values()]):
        match = _CITED.fullmatch(node.value)
        if match is None or match[1] not in kinds:
            continue
        key = match[1], match[2]
        used.add(key)
        if key in given:
            taken = given[key]
            node.value, node.path, node.source, node.line = taken.value, taken.path, taken.source, taken.line
        else:
            known = [name for kind, name in given if kind == match[1]]
            guess = closest(match[2], known)
            hint = f"did you mean @{match[1]}/{guess}?" if guess else f"add {match[2]!r} to the pipeline's {match[1]}"
            issues.add(node, f"nothing is given as {'.'.join(key)}", hint)
    for key, node in given.items():
        if key not in used:
            issues.add(node, *_unused(key, used, root, jobs))


def _place(node: Node) -> None:
    """A path in a file is relative to the file's folder; write it with that folder."""
    if node.line and isinstance(node.value, str):
        node.value = in_folder(node.value, Path(node.source).parent)


def in_folder(written: str, folder: Path) -> str:
    """A path as a file's `data` has it, with the file's folder before it if it is relative."""
    return os.path.normpath(folder / written) if _RELATIVE.match(written) else written


def _citations(nodes: list[Node]) -> Iterator[Node]:
    """Every text in some sections that begins with @."""
    for node in nodes:
        if isinstance(node.value, dict):
            yield from _citations(list(node.value.values()))
        elif isinstance(node.value, list):
            yield from _citations(node.value)
        elif isinstance(node.value, str) and node.value.startswith("@"):
            yield node


def _unused(key: tuple[str, str], used: set[tuple[str, str]], root: Node, jobs: Mapping[str, Node]) -> tuple[str, str]:
    """What is wrong with something given that no job cites, and where it can be set instead."""
    kind, name = key
    cited = sorted(f"@{kind}/{other}" for other_kind, other in used if other_kind == kind)
    if cited:
        return f"no job uses @{kind}/{name}", f"the jobs use {', '.join(cited)}"
    places = {"shared": root.value.get("shared"), **{f"jobs.{job}": node for job, node in jobs.items()}}
    own = [f"{place}.{kind}.{name}" for place, node in places.items() if node is not None and _sets(node, key)]
    if not own:
        return f"no job uses @{kind}/{name}", "remove it, or cite it in a job"
    shown = ", ".join(f"{OVERRIDE} {path}=…" for path in own)
    return f"this pipeline's jobs name their {kind} themselves", f"use {shown}, or cite @{kind}/{name} there"


def _sets(section: Node, path: KeyPath) -> bool:
    """Whether a section has a value of its own there, which is no citation."""
    value = section.at(path)
    return value is not None and not (isinstance(value, str) and value.startswith("@"))
