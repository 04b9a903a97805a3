"""Rows of Parquet and Arrow files, and of Arrow tables, as values that JSON can hold.

Arrow gives the objects of a column one type: a key that an object lacks is null in it. Those nulls are dropped, so that
a message has the keys that were written, and a call the arguments of its own tool. Inside text that is marked as JSON
(the type `arrow.json`, or `Json` in the features of `datasets`) a null was written, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from easydistill.data.plain import plain_json, plain_scalar
from easydistill.errors import DataError

_BATCH = 1024
"""Rows that are turned into Python values at once."""
Read = Callable[[Any], Any]


def parquet_rows(path: Path) -> Iterator[Any]:
    """The rows of a Parquet file.

    Raises:
        DataError: it is none, or a value of it has no form in JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            features = features_of(file.schema_arrow)
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from table_rows(batch, features)
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable Parquet file: {error}") from None


def arrow_rows(path: Path) -> Iterator[Any]:
    """The rows of an Arrow file, in the stream or the file format (Feather).

    Raises:
        DataError: it is none, or a value of it has no form in JSON.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            batches = _file_batches(pa.ipc.open_file(source)) if is_file else pa.ipc.open_stream(source)
            for batch in batches:
                features = features_of(batch.schema)
                for start in range(0, batch.num_rows, _BATCH):
                    yield from table_rows(batch.slice(start, _BATCH), features)
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable Arrow file: {error}") from None


def _file_batches(reader: Any) -> Iterator[Any]:
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def features_of(schema: Any) -> Mapping[str, Any]:
    """The features that `datasets` writes into a schema, by column; empty without any."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def table_rows(table: Any, features: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a table or a batch.

    Args:
        features: by column, as `datasets` writes them into a schema.
    """
    columns: list[list[Any]] = []
    for field, column in zip(table.schema, table.columns, strict=True):
        read = _reader(field.type, features.get(field.name))
        values = _values(column)
        columns.append(values if read is None else [None if value is None else read(value) for value in values])
    names = table.schema.names
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    # Python has no nanoseconds.
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    # Ten times slower than without maps.
    return list(column.to_pylist(maps_as_pydicts="strict") if _has_map(column.type) else column.to_pylist())


def _has_map(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_map(kind):
        return True
    if pa.types.is_nested(kind):
        return any(_has_map(kind.field(number).type) for number in range(kind.num_fields))
    return False


def _reader(kind: Any, feature: Any) -> Read | None:
    """What a value that is not null must go through; None if it can stay as it is."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.JsonType) or (_named(feature) == "Json" and types.is_string(kind)):
        return _decoded
    if types.is_struct(kind):
        return _struct_reader(kind, feature)
    if types.is_map(kind):
        return _map_reader(_reader(kind.item_type, None))
    lists = types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view
    if any(test(kind) for test in lists):
        return _list_reader(_reader(kind.value_type, _inner(feature)))
    if types.is_dictionary(kind):
        return _reader(kind.value_type, feature)
    plain = types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_float32
    if types.is_float64(kind) or any(test(kind) for test in plain):
        return None
    return _plain


def _plain(value: Any) -> Any:
    """A value of a type that is not known here."""
    return plain_json(value) if isinstance(value, list | dict | tuple) else plain_scalar(value)


def _named(feature: Any) -> str | None:
    name = feature.get("_type") if isinstance(feature, dict) else None
    return name if isinstance(name, str) else None


def _inner(feature: Any) -> Any:
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    return feature.get("feature") if isinstance(feature, dict) else None


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _struct_reader(kind: Any, feature: Any) -> Read:
    # A sequence of objects, as older versions of `datasets` stored it: an object of lists.
    sequence = _named(feature) in {"Sequence", "List", "LargeList"}
    inner = _inner(feature) if sequence else feature
    inner = inner if isinstance(inner, dict) else {}
    readers = [_reader(field.type, [inner.get(field.name)] if sequence else inner.get(field.name)) for field in kind]
    if not sequence and not any(readers):
        return _without_nulls
    by_name = dict(zip([field.name for field in kind], readers, strict=True))

    def read(value: dict[str, Any]) -> Any:
        kept = {
            name: item if (reader := by_name[name]) is None else reader(item)
            for name, item in value.items()
            if item is not None
        }
        return _turned(kept) if sequence else kept

    return read


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


def _turned(lists: dict[str, Any]) -> Any:
    """An object of equally long lists as a list of objects; anything else as it is."""
    if not lists or any(not isinstance(values, list) for values in lists.values()):
        return lists
    if len({len(values) for values in lists.values()}) > 1:
        return lists
    rows = zip(*lists.values(), strict=True)
    return [{name: value for name, value in zip(lists, row, strict=True) if value is not None} for row in rows]


def _list_reader(read: Read | None) -> Read | None:
    if read is None:
        return None
    return lambda values: [None if value is None else read(value) for value in values]


def _map_reader(read: Read | None) -> Read:
    def of_map(value: Mapping[Any, Any]) -> dict[str, Any]:
        return {
            str(plain_scalar(key)): item if read is None or item is None else read(item) for key, item in value.items()
        }

    return of_map
