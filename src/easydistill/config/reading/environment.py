"""`${env:NAME}` inside a config's text values, filled in from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from easydistill.config.reading.document import Document, KeyPath
from easydistill.errors import ConfigIssue

_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")
_UNCLOSED = re.compile(r"\$\{env:[^}]*$")
_MEANT = re.compile(r"\$\{?(?:(?:ENV|Env|env)[:.])?([A-Za-z_]\w*)\}?")
"""A whole value that is written as shells and other tools write a variable."""


def resolve_environment(
    document: Document, environ: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[KeyPath, ConfigIssue]]:
    """Fill in references. The document keeps them as written, so that no message shows what they stand for.

    Returns:
        The data with references filled in, and an issue for each that cannot be.
    """
    variables = os.environ if environ is None else environ
    issues: dict[KeyPath, ConfigIssue] = {}

    def walk(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        problem = _problem(value, variables)
        if problem is not None:
            issues[path] = document.issue(path, *problem)
            return value
        return _REFERENCE.sub(lambda match: variables[match.group(1)], value)

    return walk(document.data, ()), issues


def _problem(text: str, variables: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with the references in a text, and how to mend it."""
    for name in _REFERENCE.findall(text):
        if not name.strip():
            return "a reference to the environment has no name", "write ${env:NAME}"
        if not variables.get(name):
            state = "is empty" if name in variables else "is not set"
            return f"the environment variable {name!r} {state}", f"export {name.strip()}=… before the command"
    if _UNCLOSED.search(text):
        return "a reference to the environment is not closed", "end it with }: ${env:NAME}"
    meant = _MEANT.fullmatch(text)
    if meant and not _REFERENCE.fullmatch(text):
        return f"{text} is not filled in from the environment", f"write ${{env:{meant[1]}}}"
    return None
