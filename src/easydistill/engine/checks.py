"""Cheap checks that stages make before anything heavy starts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from easydistill.errors import ConfigIssue


def missing_file(key: str, path: str | None) -> list[ConfigIssue]:
    """An issue if the file that `key` names is not there."""
    if path is None or Path(path).is_file():
        return []
    here = f"paths are relative to the working directory, {Path.cwd().name}/"
    return [ConfigIssue("config", key, f"{json.dumps(path)}: no such file", here)]


def needs_extra(extra: str, *modules: str) -> list[ConfigIssue]:
    """An issue if one of an extra's modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return []
    mend = f"pip install 'easydistill-toolkit[{extra}]'"
    return [ConfigIssue("this machine", "", f"this job needs {', '.join(missing)}, not installed", mend)]
