"""Reading fields of a task's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from easydistill.data.messages import Message
from easydistill.data.row_files import MalformedRow


def text_field(row: Mapping[str, Any], *names: str) -> str:
    """The first of the fields that the row has, as text.

    Raises:
        MalformedRow: it has none of them, or one that is neither text nor a number.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    raise MalformedRow(f"there is no text in {' or '.join(map(repr, names))}; the row has {', '.join(row)}")


def list_field(row: Mapping[str, Any], *names: str) -> list[Any]:
    """The first of the fields that the row has, as a list; a list may be written as JSON.

    Raises:
        MalformedRow: it has none of them.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                continue
        if isinstance(value, list | tuple):
            return list(value)
    raise MalformedRow(f"there is no list in {' or '.join(map(repr, names))}; the row has {', '.join(row)}")


def row_id(row: Mapping[str, Any], number: int, *names: str) -> str:
    """A row's own id in one of the fields, else its number."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return str(number)


def asked(text: str) -> tuple[Message, ...]:
    """The text as a user's message."""
    return ({"role": "user", "content": text},)
