"""Places and values of a config in messages. What is shown of a value never holds a secret."""

from __future__ import annotations

import json
import re
from typing import Any

from easydistill.config.identity import SECRET_KEYS

KeyPath = tuple[str | int, ...]
HIDDEN = "(hidden)"
_SHOWN = 60
_URL_PASSWORD = re.compile(r"(://)[^/@\s]+@")


def dotted(path: KeyPath) -> str:
    """`training.learning_rate`."""
    return ".".join(map(str, path))


def is_secret(path: KeyPath) -> bool:
    """Whether the value at `path` must not be shown."""
    return any(part in SECRET_KEYS for part in path)


def show(value: Any, path: KeyPath = ()) -> str:
    """A value in a message: as JSON, short, secrets hidden."""
    if is_secret(path):
        return HIDDEN
    try:
        text = json.dumps(_without_secrets(value), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = _URL_PASSWORD.sub(r"\1(hidden)@", text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if key in SECRET_KEYS else _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    # Text that holds a secret's key is a section that failed to parse.
    if isinstance(value, str) and any(key in value for key in SECRET_KEYS):
        return HIDDEN
    return value
