"""Rows of a Hugging Face hub's data set, through `datasets` (the extra `hub`), as they are needed.

JSON and CSV files are fetched one by one and read by our own readers: those of `datasets` rewrite texts that look like
dates ("2024-05-01" becomes "2024-05-01 00:00:00") and take "007" for a number. Files of other formats are streamed.
Without a network, what `datasets` has prepared in its cache is read as it has prepared it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.data.records import content_hash
from easydistill.data.row_files.hub_place import HubPlace
from easydistill.data.row_files.places import TEXT_FORMATS, format_of, listed
from easydistill.errors import DataError, MissingExtra

_BATCH = 1024


def hub_rows(place: HubPlace) -> Iterator[Any]:
    """The rows of a data set's split, in order.

    Raises:
        DataError: the hub cannot be reached, has no such data set, or several splits or configs to choose from.
        MissingExtra: `datasets` is not installed.
    """
    with _told(place):
        builder, split = _resolved(place)
        files = None if _cached(builder) else _own_files(builder, split)
        if files is None:
            yield from _streamed(builder, split)
            return
        for file in files:
            yield from _file_rows(file)


def hub_hash(place: HubPlace) -> str:
    """A hash of what a place names: the data set's commit, its config, split and files.

    Raises:
        DataError: as for `hub_rows`.
        MissingExtra: `datasets` is not installed.
    """
    with _told(place):
        builder, split = _resolved(place)
    return content_hash([place.repository, builder.hash, builder.config.name, split, list(place.data_files)])


@contextlib.contextmanager
def _told(place: HubPlace) -> Iterator[None]:
    """Turn what `datasets` raises into a `DataError` that names the data set."""
    try:
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise MissingExtra("hub", f"Reading {place}") from None
    try:
        yield
    except DataError:
        raise
    except ConnectionError as error:
        hint = "without a network, only what `datasets.load_dataset` has cached can be read"
        raise DataError(f"{place}: the hub cannot be reached: {error}\n    → {hint}") from None
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(f"{place}: {type(error).__name__}: {error}") from None


@functools.lru_cache(maxsize=16)
def _resolved(place: HubPlace) -> tuple[Any, str]:
    """(builder of the data set, split)."""
    import datasets

    builder = datasets.load_dataset_builder(
        # Never a folder that happens to have this name.
        f"hf://datasets/{place.repository}",
        name=place.config,
        data_files=list(place.data_files) or None,
        revision=place.revision,
    )
    if _cached(builder) and place.revision is not None and not builder.hash.startswith(place.revision):
        # Without a network, `datasets` takes what it has cached, of whatever revision.
        problem = f"the cache holds commit {builder.hash}, which is not known to be revision {place.revision}"
        raise DataError(f"{place}: {problem}\n    → without a network, name the commit: {place}@{builder.hash}")
    names = [str(name) for name in (builder.info.splits or getattr(builder.config, "data_files", None) or {})]
    return builder, _split(place, names)


def _split(place: HubPlace, names: list[str]) -> str:
    if place.split is None:
        if len(names) == 1 or "train" in names or not names:
            return "train" if "train" in names or not names else names[0]
        raise DataError(f"{place}: it has several splits: {listed(names)}\n    → name one: {place}?split={names[0]}")
    if names and place.split not in names:
        raise DataError(f"{place}: it has no split {place.split!r}\n    → its splits are {listed(names)}")
    return place.split


def _cached(builder: Any) -> bool:
    """Whether the data set is known from the cache alone, as the hub could not be reached."""
    return type(builder).__module__.endswith(".cache.cache")


def _prepared(builder: Any) -> bool:
    """Whether the cache of `datasets` holds the rows."""
    return (Path(str(builder.cache_dir)) / "dataset_info.json").is_file()


def _own_files(builder: Any, split: str) -> list[str] | None:
    """The files of a split, if our own readers can read them: JSON and CSV as they are by default."""
    config = builder.config
    by_default = getattr(config, "field", None) is None and getattr(config, "sep", ",") in (",", None)
    by_default = by_default and getattr(config, "column_names", None) is None and getattr(config, "names", None) is None
    files = [str(name) for name in (getattr(config, "data_files", None) or {}).get(split, ())]
    known = [format_of(Path(name.partition("?")[0])) for name in files]
    if not files or not by_default or any(each is None or each.suffix not in TEXT_FORMATS for each in known):
        return None
    return files


def _file_rows(name: str) -> Iterator[Any]:
    from easydistill.data.row_files import file_rows

    if not name.startswith("hf://"):
        yield from file_rows(Path(name))
        return
    from huggingface_hub import HfFileSystem, hf_hub_download

    found: Any = HfFileSystem().resolve_path(name)
    local = hf_hub_download(found.repo_id, found.path_in_repo, repo_type="dataset", revision=found.revision)
    yield from file_rows(Path(local))


def _streamed(builder: Any, split: str) -> Iterator[Any]:
    from easydistill.data.row_files.arrow import table_rows

    # A cache is read where it lies.
    rows = builder.as_dataset(split=split) if _prepared(builder) else builder.as_streaming_dataset(split=split)
    features = rows.features.to_dict() if rows.features is not None else {}
    for table in rows.with_format("arrow").iter(batch_size=_BATCH):
        yield from table_rows(table, features)
