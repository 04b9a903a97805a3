"""Cheap checks that stages make before anything heavy starts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from easydistill.errors import ConfigIssue


def missing_file(key: str, path: str | None) -> list[ConfigIssue]:
    """An issue if the file that `key` names does not exist."""
    if path is None or Path(path).is_file():
        return []
    hint = f"paths are relative to the working directory, {Path.cwd().name}/"
    return [ConfigIssue("config", key, f"{json.dumps(path)}: no such file", hint)]


def needs_extra(extra: str, *modules: str) -> list[ConfigIssue]:
    """An issue if one of an extra's modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return []
    problem = f"this job needs packages that are not installed: {', '.join(missing)}"
    return [ConfigIssue("this machine", "", problem, f"pip install 'easydistill-toolkit[{extra}]'")]
