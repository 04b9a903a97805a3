"""Values of unknown JSON, taken only as what they are: a wrong type reads as missing, never as a crash or a zero."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.data.numbers import as_float as as_float


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    """A text as it is, nothing for null, anything else as JSON writes it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def dig(value: Any, path: str) -> Any:
    """What a dotted path leads to; None where it leads nowhere."""
    for key in path.split("."):
        value = as_dict(value).get(key)
    return value


def shown(value: Any, limit: int) -> str:
    """A value as text of at most `limit` characters, and how many more there were."""
    text = as_text(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON Lines file, one at a time; a torn line, left by a kill, is passed over."""
    try:
        handle = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with handle:
        for line in handle:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
