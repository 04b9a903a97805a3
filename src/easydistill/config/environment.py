"""`${env:NAME}` inside a config's text values, filled in from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from easydistill.config.syntax import Document, KeyPath
from easydistill.errors import ConfigIssue

_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")


def resolve_environment(document: Document, environ: Mapping[str, str] = os.environ) -> list[ConfigIssue]:
    """Replace references in place. Returns an issue for each variable that is not set."""
    issues: list[ConfigIssue] = []

    def walk(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            if environ.get(name):
                return environ[name]
            state = "is empty" if name in environ else "is not set"
            mend = f"export {name}=… before the command" if name else "write ${env:NAME}"
            issues.append(
                ConfigIssue(
                    document.where(path),
                    ".".join(map(str, path)),
                    f"the environment variable {name!r} {state}",
                    mend,
                )
            )
            return match.group()

        return _REFERENCE.sub(fill, value)

    document.data = walk(document.data, ())
    return issues
