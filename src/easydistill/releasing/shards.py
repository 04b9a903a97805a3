"""Rows → Parquet files of one schema: Zstandard, a file a shard, the same bytes for the same rows.

A shard ends when its file has reached the wanted size, so it is larger than that by at most a row group. Which types
hold all rows is found before the first table is made. Where a type that was found does not hold a value after all (an
integer that no float is equal to), its column is written as JSON, and all shards anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.records import Sample
from easydistill.data.tables import IMAGES
from easydistill.errors import DataError
from easydistill.releasing.layouts import Layout

_GROUP = 16 << 20
"""Most characters and bytes of a row group."""
_GROUP_ROWS = 10_000
_LEVEL = 9
"""Of Zstandard: a released file is written once and read often."""


@dataclass(frozen=True)
class Shard:
    """A file of a split."""

    path: str
    """Inside the dataset's folder."""
    rows: int
    bytes: int


class _Unsteady(Exception):
    """A table has another schema than those before it, in these columns."""

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__(", ".join(columns))
        self.columns = columns


def write_splits(
    folder: Path,
    splits: Mapping[str, Sequence[Sample]],
    layout: Layout,
    shard_bytes: int,
    stop: Callable[[], None],
) -> dict[str, list[Shard]]:
    """Write the splits into folders of their names.

    Args:
        shard_bytes: size at which a file ends.
        stop: called between row groups; raises if the run is to end.

    Returns:
        The files of each split, in order.

    Raises:
        DataError: a column's values have no common type, not even as JSON.
    """
    layout.fit(list(splits.values()))
    loosened: set[str] = set()
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        writer = _Writer(folder, layout, shard_bytes, stop)
        try:
            return {name: writer.split(name, samples) for name, samples in splits.items()}
        except _Unsteady as problem:
            if loosened.issuperset(problem.columns):
                raise DataError(f"no type holds all values of the column {problem}") from None
            loosened.update(problem.columns)
            for column in problem.columns:
                layout.loosen(column)


class _Writer:
    """Writes splits of one schema."""

    def __init__(self, folder: Path, layout: Layout, shard_bytes: int, stop: Callable[[], None]) -> None:
        self._folder, self._layout, self._shard_bytes, self._stop = folder, layout, shard_bytes, stop
        self._schema: Any = None

    def split(self, name: str, samples: Sequence[Sample]) -> list[Shard]:
        """Write one split."""
        directory = self._folder / name
        directory.mkdir(parents=True)
        blocks = _blocks(self._layout.rows(samples), min(_GROUP, self._shard_bytes))
        rows: list[int] = []
        block = next(blocks, None)
        while block is not None:
            path, count = directory / f"{len(rows)}.partial", 0
            with path.open("wb") as handle, self._opened(handle, self._table(block)) as writer:
                while block is not None and (count == 0 or handle.tell() < self._shard_bytes):
                    self._stop()
                    writer.write_table(self._table(block), row_group_size=len(block))
                    count += len(block)
                    block = next(blocks, None)
            rows.append(count)
        return [self._named(directory, number, len(rows), count) for number, count in enumerate(rows)]

    def _opened(self, handle: Any, table: Any) -> Any:
        import pyarrow.parquet as parquet

        return parquet.ParquetWriter(handle, table.schema, compression="zstd", compression_level=_LEVEL)

    def _table(self, rows: Sequence[dict[str, Any]]) -> Any:
        """The rows as a table.

        Raises:
            _Unsteady: it has another schema than the first one.
        """
        table = self._layout.table(rows)
        if IMAGES in table.column_names:
            table = table.replace_schema_metadata(_with_images(table.schema))
        if self._schema is None:
            self._schema = table.schema
        if not table.schema.equals(self._schema):
            names = dict.fromkeys([*table.column_names, *self._schema.names])
            raise _Unsteady([name for name in names if not _same(table.schema, self._schema, name)])
        return table

    @staticmethod
    def _named(directory: Path, number: int, count: int, rows: int) -> Shard:
        path = directory / f"{directory.name}-{number:05d}-of-{count:05d}.parquet"
        (directory / f"{number}.partial").rename(path)
        return Shard(f"{directory.name}/{path.name}", rows, path.stat().st_size)


def _same(left: Any, right: Any, name: str) -> bool:
    return name in left.names and name in right.names and bool(left.field(name).type == right.field(name).type)


def _with_images(schema: Any) -> dict[str, str]:
    """The metadata by which `datasets` gives images as images."""
    from datasets import Features, Image, List

    features = Features.from_arrow_schema(schema)
    features[IMAGES] = List(Image())
    found: dict[str, str] = features.arrow_schema.metadata
    return found


def _blocks(rows: Iterable[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists, each of which becomes a row group."""
    block: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += _size(row)
        if size >= most or len(block) == _GROUP_ROWS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _size(value: Any) -> int:
    """Characters and bytes of a value, roughly."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return 8


def schema_text(folder: Path, shard: Shard) -> list[tuple[str, str]]:
    """(column, type) of a shard, as Arrow spells types."""
    import pyarrow.parquet as parquet

    schema = parquet.read_schema(folder / shard.path)
    return [(field.name, str(field.type).replace("extension<arrow.json>", "json")) for field in schema]


def checksums(folder: Path) -> str:
    """The text of a file that `sha256sum --check` reads: all files of a folder but itself, by name."""
    from easydistill.data.files import hash_file

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)
