"""What a configured path of rows names: a file, a folder of shards, a glob, a folder of `save_to_disk`, a hub data set.

    rows.jsonl  rows.csv.gz        one file: its format is that of its suffix, perhaps under a compression
    shards/                        all files of a folder, in the order of their names; of one that holds nothing but
                                   folders of splits (what the job `release` wrote), the files of `train/`
    shards/train-*.parquet  **/*.jsonl   the files that a glob matches, in the order of their paths
    saved/                         what `datasets.Dataset.save_to_disk` wrote
    hf://owner/name?split=train    a data set of the Hugging Face hub

Nothing here opens a file or imports a library, so `validate` can ask it.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.row_files.broken import PlaceError
from easydistill.data.row_files.hub_place import HUB_SPELLING, HubPlace, hub_place, is_hub

TEXT_FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
"""Formats that may be compressed."""
TABLE_FORMATS = (".parquet", ".arrow")
FORMATS = (*TEXT_FORMATS, *TABLE_FORMATS)
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_SAME = {".ndjson": ".jsonl", ".tsv": ".csv"}
_BESIDE_ROWS = (".md", ".txt", ".yaml", ".yml", ".py", ".html", ".lock", ".crc", ".log", ".ipynb", ".sha256")
"""Files that lie beside the rows of a folder and hold none."""
_NO_ROWS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "LICENSE", "README"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}
_SUFFIX = re.compile(r"\.[a-zA-Z]{2,8}\d?", re.ASCII)
"""Of a file. What else stands behind a dot may belong to a folder's name: `rows.v2`."""


@dataclass(frozen=True)
class Format:
    """How a file is read."""

    suffix: str
    """One of `FORMATS`."""
    compression: str = ""
    """One of `COMPRESSIONS`, or nothing."""

    @property
    def kind(self) -> str:
        """The suffix, where two suffixes name one format the first of them."""
        return _SAME.get(self.suffix, self.suffix)


@dataclass(frozen=True)
class FilesPlace:
    """Files of rows, in the order in which they are read."""

    root: Path
    """The file itself, or the folder that names are relative to."""
    files: tuple[Path, ...]

    @property
    def single(self) -> bool:
        """Whether one plain file was named."""
        return self.files == (self.root,)


def format_of(path: Path) -> Format | None:
    """The format that a file's name tells; None if it tells none that is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last in FORMATS:
        return Format(last)
    if last in COMPRESSIONS and len(suffixes) > 1 and suffixes[-2] in TEXT_FORMATS:
        return Format(suffixes[-2], last)
    return None


def place_of(where: str | Path) -> FilesPlace | HubPlace:
    """What a path of rows names.

    Raises:
        PlaceError: nothing, or nothing that is read.
    """
    name = str(where)
    if is_hub(name):
        return hub_place(name)
    path = Path(where)
    if path.is_file():
        _check_format(name, path)
        return FilesPlace(path, (path,))
    if path.is_dir():
        return _folder(name, path)
    if glob.has_magic(name):
        return _matches(name)
    if "://" in name or re.match(r"\w{2,}:/", name):
        raise PlaceError(name, "no such file", f"a file is named by its path, a hub's data set as {HUB_SPELLING}")
    here = f"paths are relative to the working directory, {Path.cwd().name}/"
    raise PlaceError(name, "no such file", here)


def check_name(where: str) -> None:
    """Refuse a name that can name no rows, whether or not it is there.

    Raises:
        PlaceError: a file's suffix is that of no format, or a hub's id is none. A folder may have any name.
    """
    path = Path(where)
    if is_hub(where):
        hub_place(where)
    elif _SUFFIX.fullmatch(path.suffix) and not path.is_dir() and not glob.has_magic(where):
        _check_format(where, path)


def _check_format(name: str, path: Path) -> None:
    if format_of(path) is not None:
        return
    quoted = "" if str(path) == name else f" of {path.name}"
    hint = f"a data file ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        hint = f"name the format before the compression, as in rows.jsonl{suffix}; {TABLE_FORMATS[0]} is not compressed"
    elif suffix in {".zip", ".tar", ".tgz", ".7z"}:
        hint = "unpack it, and name the folder"
    elif suffix in {".xlsx", ".xls", ".ods"}:
        hint = "save the sheet as .csv"
    problem = f"the suffix{quoted} is not that of a supported format"
    raise PlaceError(name, problem, hint if suffix else f"the file has no suffix: {hint}")


# --- folders and globs ----------------------------------------------------------------------------------------


def _folder(name: str, path: Path) -> FilesPlace:
    if (path / "dataset_dict.json").is_file():
        return _saved_splits(name, path)
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return _saved(name, path)
    inside = sorted(file for file in path.iterdir() if file.name[0] not in "._" and file.name not in _NO_ROWS)
    files = [file for file in inside if file.is_file() and file.suffix.lower() not in _BESIDE_ROWS]
    if not files:
        if (split := _split_folder(path)) is not None:
            return _folder(f"{name.rstrip('/')}/{split.name}", split)
        raise _no_rows(name, path)
    for file in files:
        _check_format(name, file)
    _refuse_mixed(name, files)
    return FilesPlace(path, tuple(files))


def _split_folder(path: Path) -> Path | None:
    """The folder to read of one that holds nothing but folders of splits: `train`, or the only one."""
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and folder.name[0] not in "._"]
    if not folders or any(_SPLITS.get(folder.name) != folder.name for folder in folders):
        return None
    train = next((folder for folder in folders if folder.name == "train"), None)
    return train if train is not None or len(folders) > 1 else folders[0]


def _no_rows(name: str, path: Path) -> PlaceError:
    below = next((file for file in sorted(path.rglob("*")) if file.is_file() and format_of(file)), None)
    if below is None:
        return PlaceError(name, "there is no file of rows in this folder", f"its files end in {', '.join(FORMATS)}")
    hint = f'name them with a glob: "{name.rstrip("/")}/**/*{below.suffix}"'
    return PlaceError(name, "the files of rows are in folders below this one", hint)


def _refuse_mixed(name: str, files: Iterable[Path]) -> None:
    """Refuse the files of a folder if they are of several formats or splits."""
    kinds = sorted({found.kind for file in files if (found := format_of(file)) is not None})
    if len(kinds) > 1:
        hint = f'if they are not the same rows twice, name those to read: "{name.rstrip("/")}/*{kinds[0]}"'
        raise PlaceError(name, f"files of several formats are in this folder: {', '.join(kinds)}", hint)
    splits = sorted({split for file in files if (split := _split_in(file.name)) is not None})
    if len(splits) > 1:
        hint = f'name the files of one: "{name.rstrip("/")}/{splits[-1]}*"'
        raise PlaceError(name, f"files of several splits are in this folder: {', '.join(splits)}", hint)


def _split_in(name: str) -> str | None:
    """The split that a file's name tells: `train-00000-of-00003.parquet`, `my_test.jsonl`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _saved_splits(name: str, path: Path) -> FilesPlace:
    splits = _json(name, path / "dataset_dict.json").get("splits")
    names = [str(split) for split in splits] if isinstance(splits, list) else []
    wanted = names[0] if len(names) == 1 else "train"
    if wanted not in names:
        hint = f"name the folder of one, as {name.rstrip('/')}/{names[0]}" if names else ""
        raise PlaceError(name, f"a saved data set with the splits {', '.join(names) or 'of no name'}", hint)
    return _saved(f"{name.rstrip('/')}/{wanted}", path / wanted)


def _saved(name: str, path: Path) -> FilesPlace:
    """The Arrow files of `Dataset.save_to_disk`, in the order of its state."""
    listed = _json(name, path / "state.json").get("_data_files") or []
    files = tuple(path / str(entry["filename"]) for entry in listed if isinstance(entry, dict) and "filename" in entry)
    for file in files:
        if not file.is_file():
            raise PlaceError(name, f"{file.name} of the saved data set is missing", "save it again")
    if not files:
        raise PlaceError(name, "the saved data set has no rows")
    return FilesPlace(path, files)


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlaceError(name, f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise PlaceError(name, f"{path.name} is not that of a saved data set")
    return value


def _matches(name: str) -> FilesPlace:
    # Patterns of pathlib cannot be absolute.
    names = glob.glob(name, recursive=True)  # noqa: PTH207
    found = sorted(path for path in map(Path, names) if path.is_file())
    if not found:
        hint = f"paths are relative to the working directory, {Path.cwd().name}/; ** stands for folders below"
        raise PlaceError(name, "no file matches it", hint)
    for path in found:
        _check_format(name, path)
    fixed: list[str] = []
    for part in Path(name).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return FilesPlace(Path(*fixed), tuple(found))


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first names of several, for messages."""
    known = list(names)
    return ", ".join(known[:most]) + (" …" if len(known) > most else "")
