"""Which version a config is of, and the file that does the same here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.config.reading.aliases import JOB_TYPE_ALIASES
from easydistill.config.reading.load import JobClasses, load_config
from easydistill.config.reading.nodes import Node
from easydistill.config.reading.old_jobs import UNAVAILABLE, WRITTEN_ANEW, why_not_here
from easydistill.config.reading.syntax import read_file
from easydistill.config.values import show
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.migration import version1, version2
from easydistill.migration.draft import Draft, WrongValue


@dataclass(frozen=True)
class Migration:
    """A config of this version, and how it came about."""

    version: int
    """Which EasyDistill the old config is of."""
    config: Mapping[str, Any]
    text: str
    """JSON with comments, to be written to a file."""
    mapped: tuple[str, ...]
    """What is called otherwise now."""
    changed: tuple[str, ...]
    """What works otherwise, and why."""
    left_out: tuple[str, ...]
    """What has no equal, and why."""
    environment: tuple[str, ...]
    """Environment variables that the config names."""


def migrate(path: Path, job_classes: JobClasses) -> Migration:
    """Write an old config anew.

    Args:
        path: of the old config.
        job_classes: the config class of each job type.

    Raises:
        ConfigError: the file cannot be read, is of this version already, or has no equal here; every reason is listed.
    """
    document = read_file(path)
    version = _version(document)
    try:
        draft = (version1 if version == 1 else version2).draft(document)
    except WrongValue as error:
        problem = f"{error.wanted} is needed here, not {show(error.value)}"
        raise ConfigError(ConfigIssue(document.source, error.where, problem)) from None
    _check(draft, document, job_classes)
    return Migration(
        version,
        draft.config,
        draft.text(),
        mapped=tuple(dict.fromkeys(draft.mapped)),
        changed=tuple(dict.fromkeys(draft.changed)),
        left_out=tuple(dict.fromkeys(draft.left_out)),
        environment=tuple(draft.environment()),
    )


def _version(document: Node) -> int:
    job_type = document.at(("job_type",))
    if isinstance(job_type, str) and job_type in UNAVAILABLE:
        why = why_not_here(job_type)
        assert why is not None
        raise ConfigError(document.issue(("job_type",), *why))
    # Several names of jobs are the same in version 2 and here; only there a config has a backend.
    if "backend" in document.value or WRITTEN_ANEW.get(str(job_type)) == 2:
        return 2
    if isinstance(job_type, str) and (job_type in JOB_TYPE_ALIASES or WRITTEN_ANEW.get(job_type) == 1):
        return 1
    problem = f"{show(job_type)} is no job of EasyDistill 1 or 2" if job_type is not None else "there is no job_type"
    hint = "a config of this version is run as it is: `easydistill validate` tells what is wrong with it"
    raise ConfigError(document.issue(("job_type",), problem, hint))


def _check(draft: Draft, document: Node, job_classes: JobClasses) -> None:
    """Make sure that what will be written is valid.

    Raises:
        ConfigError: it is not, for a value of the old config that no version can take.
    """
    try:
        load_config(_filled(draft.config), lambda: job_classes)
    except ConfigError as error:
        issues = [
            ConfigIssue(f"{document.source}, migrated", each.path, each.problem, each.hint) for each in error.issues
        ]
        raise ConfigError(issues) from None


def _filled(value: Any) -> Any:
    """A config with something in place of what the environment will give."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item) for item in value]
    return re.sub(r"\$\{env:[^}]*\}", "http://localhost:8000/v1", value) if isinstance(value, str) else value
