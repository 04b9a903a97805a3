"""Rows as pyarrow tables: which columns there are, and the types that hold all their values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

IMAGES = "images"
"""Column of the paths of a row's images."""
PARTS = "parts"
"""Key of the parts of a message with images."""
TEXT_KEYS = frozenset({"role", "content", "reasoning_content", PARTS})
"""Of messages that are written as objects; `writing.py` says why others are JSON text."""
TOOLS, KWARGS = "tools", "chat_template_kwargs"


class Columns:
    """The columns of a table of rows, and their types.

    Args:
        chats: names of the columns that hold lists of messages.
    """

    def __init__(self, chats: Sequence[str]) -> None:
        self._chats = chats
        self._rich = self._shown = False
        self._named: set[str] = set()
        self._types: dict[str, Any] = {}
        self._texts: set[str] = set()
        """Fields that are text of JSON, and not of its type."""

    def fit(self, rows: Sequence[dict[str, Any]]) -> None:
        """Make the columns hold these rows too."""
        import pyarrow as pa

        self._fit_chats(rows)
        for name, values in self._fields(rows).items():
            try:
                found = pa.schema([(name, pa.array(values).type)])
                before = pa.schema([(name, self._types[name])]) if name in self._types else found
                both = pa.unify_schemas([before, found], promote_options="permissive").field(0).type
            except (pa.ArrowException, OverflowError):
                both = pa.json_()
            self._types[name] = pa.json_() if _has_empty_struct(both) else both
            if both == pa.json_() and any(map(_is_beyond_json, values)):
                self._texts.add(name)

    def table(self, rows: Sequence[dict[str, Any]]) -> Any:
        """The rows as a pyarrow table. Columns that were not fitted are those of the rows."""
        import pyarrow as pa

        if not self._types:
            self._fit_chats(rows)
        columns = {"id": pa.array([row["id"] for row in rows], pa.string()), **self._chat_arrays(rows)}
        fields = self._fields(rows)
        for name in self._types or fields:
            values = fields.get(name, [None] * len(rows))
            array = _field_array(values, self._types.get(name))
            is_text = name in self._texts or (array.type == pa.json_() and any(map(_is_beyond_json, values)))
            columns[name] = array.cast(pa.string()) if is_text else array
        return pa.table(columns)

    def set_type(self, name: str, kind: Any) -> None:
        """Give a column a type, where it has one already."""
        if name in self._types:
            self._types[name] = kind

    def as_json(self, name: str) -> None:
        """Write a column as JSON."""
        import pyarrow as pa

        self.set_type(name, pa.json_())

    def all_as_json(self, except_for: Sequence[str]) -> None:
        """Write all columns as JSON, but for some."""
        for name in self._types.keys() - set(except_for):
            self.as_json(name)

    def _fields(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """The values of the columns that are neither the id nor part of the chat."""
        known = {"id", TOOLS, KWARGS, *self._chats}
        names = dict.fromkeys(name for row in rows for name in row if name not in known)
        return {name: [row.get(name) for row in rows] for name in names}

    def _fit_chats(self, rows: Sequence[dict[str, Any]]) -> None:
        self._named |= {name for row in rows for name in (TOOLS, KWARGS) if name in row}
        messages = (message for row in rows for name in self._chats for message in row[name])
        self._rich = self._rich or bool(self._named) or any(message.keys() - TEXT_KEYS for message in messages)
        self._shown = self._shown or any(IMAGES in row for row in rows)

    def _chat_arrays(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The columns of the chats, their tools and their variables."""
        import pyarrow as pa

        if not self._rich:
            fields = [(name, pa.string()) for name in ("role", "content", "reasoning_content")]
            part = pa.struct([("type", pa.string()), ("text", pa.string())])
            message = pa.struct([*fields, *([(PARTS, pa.list_(part))] if self._shown else [])])
            return {name: pa.array([row[name] for row in rows], pa.list_(message)) for name in self._chats}
        columns = {name: _json_lists([row[name] for row in rows]) for name in self._chats}
        if TOOLS in self._named:
            columns[TOOLS] = _json_lists([row.get(TOOLS) for row in rows])
        if KWARGS in self._named:
            # TRL passes them on as keywords, and null is none.
            columns[KWARGS] = _json_array([row.get(KWARGS, {}) for row in rows])
        return columns


def _json_lists(lists: Sequence[list[Any] | None]) -> Any:
    """Lists of values as lists of `arrow.json`."""
    import pyarrow as pa

    texts = [None if values is None else list(map(_json_text, values)) for values in lists]
    return pa.array(texts, pa.list_(pa.string())).cast(pa.list_(pa.json_()))


def _json_array(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array([None if value is None else _json_text(value) for value in values], pa.string()).cast(pa.json_())


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _field_array(values: list[Any], kind: Any = None) -> Any:
    """The values of a field as an array, of the given type if there is one."""
    import pyarrow as pa

    if kind == pa.json_():
        return _json_array(values)
    try:
        array = pa.array(values, kind)
    except (pa.ArrowException, OverflowError):
        return _json_array(values)
    # Parquet has no objects without keys.
    return _json_array(values) if _has_empty_struct(array.type) else array


def _is_beyond_json(value: Any) -> bool:
    """Whether a value holds an integer that `datasets` does not read where it is marked as JSON: of over 64 bits."""
    if isinstance(value, dict):
        return any(map(_is_beyond_json, value.values()))
    if isinstance(value, list):
        return any(map(_is_beyond_json, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _has_empty_struct(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)
