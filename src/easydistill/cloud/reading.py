"""The settings of a target, from a file and `--with KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from easydistill.config.base import Section
from easydistill.config.reading.diagnose import explain
from easydistill.config.reading.nodes import Issues, Node, from_mapping
from easydistill.config.reading.overrides import apply_overrides
from easydistill.config.reading.resolve import resolve
from easydistill.config.reading.syntax import read_file
from easydistill.errors import ConfigError

Kind = TypeVar("Kind", bound=Section)


def read_settings(path: Path | None, changes: Sequence[str], kind: type[Kind], name: str) -> Kind:
    """Read and validate.

    Args:
        path: a file of any of the languages of configs; None if `changes` say all.
        changes: `key=value`, applied over the file.
        name: of the target.

    Raises:
        ConfigError: with every issue.
    """
    root = read_file(path) if path is not None else from_mapping({})
    issues = Issues()
    unusable = apply_overrides(root, changes, issues)
    root.source = root.source if path is not None else "settings of the target"
    _check_target(root, name, issues)
    data = resolve(root, issues)
    settings = None
    try:
        settings = kind.model_validate(data)
    except ValidationError as error:
        explain(error, root, kind, {}, issues)
    if found := [*unusable, *issues.in_order()]:
        raise ConfigError(found)
    assert settings is not None
    return settings


def _check_target(root: Node, name: str, issues: Issues) -> None:
    written = root.at(("target",))
    if written is not None and written != name:
        issues.add(
            root, f"the file is for {written}, and --to says {name}", "name another file, or target", ("target",)
        )
