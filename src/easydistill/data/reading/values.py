"""Values as files hold them: absent ones, lists that are JSON text or NumPy arrays, texts that are no text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from easydistill.data.row_files import MalformedRow

ROLE_KEYS = ("role", "from", "speaker", "sender")
"""Keys of a turn that say who speaks."""
_KINDS = {dict: "an object", list: "a list", tuple: "a list", bool: "true or false", int: "a number", float: "a number"}
_SAID = frozenset(("content", "value", "tool_calls"))


def is_given(value: Any) -> bool:
    """Whether a field says anything: Parquet fills absent ones with None, and lists with nothing."""
    return value is not None and not (isinstance(value, str | list | tuple | dict) and len(value) == 0)


def is_text(value: Any) -> bool:
    """Whether a value is text that is more than white space."""
    return isinstance(value, str) and bool(value.strip())


def json_in(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or says NaN or Infinity.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def from_json_text(value: Any) -> Any:
    """The object or list that a JSON text holds; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json_in(value)
        except ValueError:
            return value
    return value


def as_list(value: Any) -> list[Any] | None:
    """A list, tuple, array, or the JSON text of one, as a list; `{"role": […], "content": […]}`, the way in which
    older versions of `datasets` store a list of objects, as that list. None for anything else."""
    value = from_json_text(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        return _transposed(value)
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):
        found = value.tolist()
        return found if isinstance(found, list) else None
    return None


def _transposed(value: dict[str, Any]) -> list[Any] | None:
    columns = {name: as_list(column) for name, column in value.items() if isinstance(column, list | tuple)}
    if not columns or len(columns) != len(value) or not any(name in columns for name in ROLE_KEYS):
        return None
    lists = [column for column in columns.values() if column is not None]
    if len({len(column) for column in lists}) != 1:
        return None
    return [dict(zip(columns, items, strict=True)) for items in zip(*lists, strict=True)]


def as_turns(value: Any) -> list[Any] | None:
    """The turns of a value that is a chat: a list of objects that say who speaks, or one such object. Else None."""
    if isinstance(value, str):
        return _turns_in(value)
    items = [value] if _is_turn(value) and not _transposed(value) else turn_list(value) or []
    return items if items and all(map(_is_turn, items)) else None


def _turns_in(text: str) -> list[Any] | None:
    # A text may be about JSON: only what says who speaks and what, in a list, is taken for a chat.
    found = from_json_text(text) if text.lstrip()[:1] == "[" else None
    items = found if isinstance(found, list) else []
    return items if items and all(_is_turn(item) and not _SAID.isdisjoint(item) for item in items) else None


def turn_list(value: Any) -> list[Any] | None:
    """`as_list` of a column of turns, each of which may be JSON text: so pandas writes what `data/writing.py` wrote."""
    items = as_list(value)
    if not items or not all(isinstance(item, str) and item.lstrip()[:1] == "{" for item in items):
        return items
    found = [from_json_text(item) for item in items]
    return found if all(_is_turn(item) and not _SAID.isdisjoint(item) for item in found) else items


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(value.get(name), str) for name in ROLE_KEYS)


def without_nulls(value: Any) -> Any:
    """A value without the keys that Arrow has filled with None, at any depth."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return without_nulls(value.tolist()) if type(value).__name__ == "ndarray" else value


def as_object(value: Any) -> dict[str, Any] | None:
    """An object or the JSON text of one; None for anything else."""
    found = from_json_text(value)
    return found if isinstance(found, dict) else None


def text_field(row: Mapping[str, Any], key: str) -> str:
    """A field that may be absent, but is text where it is there.

    Raises:
        MalformedRow: it is something else.
    """
    value = row.get(key)
    if isinstance(value, float) and math.isnan(value):
        # pandas writes it for a text that is not there.
        return ""
    if value is not None and not isinstance(value, str):
        raise MalformedRow(not_text(key, value))
    return value or ""


def not_text(key: str, value: Any, holds: str | None = None) -> str:
    """What is wrong with a column that should hold a text, and how to name what it has inside.

    Args:
        holds: what `dataset.columns` calls the column's content, if it can be named there.
    """
    inside = [name for name, part in value.items() if isinstance(part, str)] if isinstance(value, dict) else []
    if not inside:
        return f"`{key}` is not text but {_KINDS.get(type(value), type(value).__name__)}: write it as text"
    named = f'{{"{holds or key}": "{key}.{inside[0]}"}}'
    return f"`{key}` is not text but an object; name the part of it that is: dataset.columns: {named}"


def names_of(row: Mapping[str, Any]) -> str:
    """A row's field names, for messages."""
    return ", ".join([str(name) for name in row][:12]) or "nothing"
