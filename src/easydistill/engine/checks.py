"""Cheap checks that stages make before anything heavy starts."""

from __future__ import annotations

import glob
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from easydistill.data.row_files.broken import PlaceError
from easydistill.data.row_files.first_bytes import check_files
from easydistill.data.row_files.hub_place import HubPlace
from easydistill.data.row_files.places import check_name, place_of
from easydistill.engine.machine.room import unwritable
from easydistill.errors import ConfigIssue


def missing_file(key: str, path: str | None) -> list[ConfigIssue]:
    """An issue if the file that `key` names does not exist."""
    if path is None or Path(path).is_file():
        return []
    hint = f"paths are relative to the working directory, {Path.cwd().name}/"
    return [ConfigIssue("config", key, f"{json.dumps(path)}: no such file", hint)]


def unwritable_issues(key: str, path: str | None) -> list[ConfigIssue]:
    """An issue if what `key` names cannot be written, which would show only once everything is paid for."""
    if path is None or (why := unwritable(Path(path))) is None:
        return []
    return [ConfigIssue("config", key, f"{json.dumps(path)} cannot be written: {why}", "name another place")]


def missing_folder(key: str, path: str | None) -> list[ConfigIssue]:
    """An issue if the folder that `key` names does not exist."""
    if path is None or Path(path).is_dir():
        return []
    hint = f"paths are relative to the working directory, {Path.cwd().name}/"
    return [ConfigIssue("config", key, f"{json.dumps(path)}: no such folder", hint)]


def misnamed_rows(key: str, path: str) -> list[ConfigIssue]:
    """Issues if `path` cannot name rows, whatever is there."""
    try:
        check_name(path)
    except PlaceError as error:
        return [_issue(key, path, error)]
    return []


def unreadable_rows(key: str, path: str | None, *, only_present: bool = False) -> list[ConfigIssue]:
    """Issues if the rows that `key` names cannot be read, as far as names of files and first bytes tell.

    Args:
        only_present: tell only of what is there: neither of a missing file nor of a missing library.
    """
    if path is None or (only_present and not is_there(path)):
        return []
    try:
        place = place_of(path)
        if isinstance(place, HubPlace):
            return needs_extra("hub", "datasets")
        check_files(path, place)
    except PlaceError as error:
        return [_issue(key, path, error)]
    return []


def is_there(path: str) -> bool:
    """Whether a path of files is that of a file or folder, or a glob that matches something."""
    if Path(path).exists():
        return True
    # Patterns of pathlib cannot be absolute.
    return glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None  # noqa: PTH207


def _issue(key: str, path: str, error: PlaceError) -> ConfigIssue:
    return ConfigIssue("config", key, f"{json.dumps(path, ensure_ascii=False)}: {error.problem}", error.hint)


def needs_extra(extra: str, *modules: str) -> list[ConfigIssue]:
    """An issue if one of an extra's modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return []
    return [_packages([extra], missing)]


@dataclass(frozen=True)
class MissingPackages(ConfigIssue):
    """Packages of extras that are not installed."""

    extras: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def _packages(extras: Iterable[str], modules: Iterable[str]) -> MissingPackages:
    named, absent = tuple(dict.fromkeys(extras)), tuple(dict.fromkeys(modules))
    problem = f"this job needs packages that are not installed: {', '.join(absent)}"
    install = f"pip install 'easydistill-toolkit[{','.join(named)}]'"
    return MissingPackages("this machine", "", problem, install, named, absent)


def in_one(issues: Sequence[ConfigIssue]) -> list[ConfigIssue]:
    """Issues without repetition, those about packages as one, so that one command installs them all."""
    missing = [issue for issue in issues if isinstance(issue, MissingPackages)]
    if not missing:
        return list(dict.fromkeys(issues))
    whole = _packages(
        (extra for issue in missing for extra in issue.extras), (name for issue in missing for name in issue.modules)
    )
    return list(dict.fromkeys([whole, *(issue for issue in issues if not isinstance(issue, MissingPackages))]))
