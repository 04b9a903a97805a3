"""From nodes to plain data: fills in `${env:NAME}` from the environment, refuses values that JSON does not have."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from easydistill.config.reading.nodes import Issues, Node

_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")
_UNCLOSED = re.compile(r"\$\{env:[^}]*$")
_MEANT = re.compile(r"\$\{?(?:(?:ENV|Env|env)[:.])?([A-Za-z_]\w*)\}?")
"""A whole value in the notation that shells and other tools use for variables."""


def resolve(node: Node, issues: Issues) -> Any:
    """Plain data. The nodes stay as written, so that no message shows what a reference stands for."""
    value = node.value
    if isinstance(value, dict):
        return {key: resolve(item, issues) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, issues) for item in value]
    problem = _wrong_reference(value) if isinstance(value, str) else None
    if problem is None and isinstance(value, str):
        value = _REFERENCE.sub(lambda match: os.environ[match[1]], value)
    problem = problem or _foreign(value)
    if problem is not None:
        issues.add(node, *problem)
    return value


def _wrong_reference(text: str) -> tuple[str, str] | None:
    """What is wrong with the references in a text, and how to fix it."""
    for name in _REFERENCE.findall(text):
        if not name.strip():
            return "a reference to the environment has no name", "write ${env:NAME}"
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            return f"the environment variable {name!r} {state}", f"export {name.strip()}=… before the command"
    if _UNCLOSED.search(text):
        return "a reference to the environment is not closed", "end it with }: ${env:NAME}"
    meant = _MEANT.fullmatch(text)
    if meant and not _REFERENCE.fullmatch(text):
        return f"{text} is not filled in from the environment", f"write ${{env:{meant[1]}}}"
    return None


def _foreign(value: Any) -> tuple[str, str] | None:
    """What is wrong with a value that is not plain: a date, bytes, infinity, broken text."""
    if isinstance(value, str):
        if "\0" in value:
            return "the text contains a NUL character", "remove it"
        if any("\ud800" <= char <= "\udfff" for char in value):
            return "the text contains half of a surrogate pair", "write the character itself, in UTF-8"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return "this is not a finite number", "give a number such as 0.5"
    elif value is not None and not isinstance(value, int):
        return f"a value of type {type(value).__name__} cannot be used in a config", "put it in quotes, as text"
    return None
