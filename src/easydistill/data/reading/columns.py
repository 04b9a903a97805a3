"""Columns of other names: a row whose columns `dataset.columns` names → the same row under the names that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydistill.data.reading import keys
from easydistill.data.reading.values import names_of
from easydistill.data.row_files import MalformedRow

_PROMPT_FAMILY = (*keys.PROMPTS, *keys.BESIDE, *keys.CHATS, keys.TEXTS, "history")
KNOWN_AS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prompt": ("prompt", _PROMPT_FAMILY),
    "input": ("input", ("input",)),
    "context": ("context", ("context",)),
    "system": ("system", keys.SYSTEMS),
    "history": ("history", ("history",)),
    "messages": ("messages", _PROMPT_FAMILY),
    "answer": ("response", keys.ANSWERS),
    "thoughts": ("reasoning_content", keys.THOUGHTS),
    "final_answer": ("final_answer", ("final_answer",)),
    "images": ("images", keys.MEDIA),
    "tools": ("tools", keys.TOOLS),
    "template_kwargs": ("chat_template_kwargs", keys.KWARGS),
    "label": ("label", keys.LABELS),
    "chosen": ("chosen", ("chosen",)),
    "rejected": ("rejected", ("rejected",)),
}
"""What a column may hold → the name under which it is read, and the names that are then not looked at."""
_NEEDED = ("prompt", "messages")
"""A row without this column is refused; the others may be absent from a row."""
_ABSENT = object()


def under_known_names(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the row, with its columns under the names by which they are read; fields that are then not looked at).

    Args:
        columns: the row's column, by what it holds. A column inside an object is named with dots.

    Raises:
        MalformedRow: the column of the prompt is not there.
    """
    found, hidden = _others(row, columns)
    for held, column in columns.items():
        value = value_at(row, column)
        if value is not _ABSENT:
            found[KNOWN_AS[held][0]] = value
        elif held in _NEEDED:
            raise MalformedRow(
                f"there is no column {column!r}, which dataset.columns.{held} names (it has: {names_of(row)})"
            )
    return found, hidden


def _others(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `columns` does not name: those that are still looked at, and those that are not."""
    taken = {name.partition(".")[0] if name not in row else name for name in columns.values()}
    others = {name: value for name, value in row.items() if name not in taken}
    known = {name for held in columns for name in KNOWN_AS[held][1]}
    hidden = {name: others.pop(name) for name in list(others) if name in known}
    return others, hidden


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a path with dots into an object."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def column_value(row: Mapping[str, Any], column: str) -> Any:
    """As `value_at`, with None where there is no such column."""
    value = value_at(row, column)
    return None if value is _ABSENT else value


def has_column(row: Any, column: str) -> bool:
    """Whether a row has a column."""
    return isinstance(row, Mapping) and value_at(row, column) is not _ABSENT
