"""From a store to a directory: every byte is compared with the SHA-256 under which it was sent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from easydistill.config.location import checked_location, copy_directory
from easydistill.data.files import read_json, write_json
from easydistill.engine.copies import copying
from easydistill.errors import DataError, StoreDamaged, StoreError
from easydistill.remote.history import Parts, State, damaged, read_state, sha256, size_of
from easydistill.remote.local import RECORD, UNSENT, hash_range, is_growing, is_safe, scan
from easydistill.remote.store import Absent, Store

WORKERS = 8
"""Objects that are read or written at the same time."""
_TRIES = 3
_HEAVY = (".safetensors", ".bin", ".pt", ".gguf", ".pth")


class NoRun(DataError):
    """Nothing was ever committed at a place in a store."""


def fetch(
    remote: str,
    local: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    wanted: Callable[[str], bool] = lambda path: True,
) -> Path:
    """Copy a run, or some of its files, from a store to a directory; what is there already is not fetched again.

    The run may be going on: the copy is then the run as one of its commits has it.

    Args:
        remote: the run's `output_dir`, such as `s3://bucket/runs/kd`.
        options: as `storage.options`.
        wanted: whether a file, by its path inside the run, is wanted.

    Raises:
        DataError: no run is there, it is damaged, or files of the directory are not those that were fetched.
        StoreError: the store cannot be read.
        RunDirectoryBusy: a command is at work in the directory.
    """
    with copying(Path(local)):
        _fetch(remote, Path(local), options, wanted)
    return Path(local)


def _fetch(remote: str, directory: Path, options: Mapping[str, Any] | None, wanted: Callable[[str], bool]) -> State:
    store = Store(checked_location(remote), dict(options or {}))
    for attempt in range(1, _TRIES + 1):
        try:
            state = read_state(store)
            if not state.number:
                raise NoRun(
                    f"{remote}: no run is here\n    → name a run's output_dir; if the store needs settings, such as "
                    "an endpoint, give them in the environment (AWS_ENDPOINT_URL) or in fsspec's own config"
                )
            bring(store, {path: parts for path, parts in state.files.items() if wanted(path)}, directory)
            return state
        except StoreDamaged:
            # Whoever works on the run may have put its commits together while they were read.
            if attempt == _TRIES:
                raise
    raise AssertionError


def fetched(remote: str, *, options: Mapping[str, Any] | None = None, light: bool = False, under: str = "") -> Path:
    """A copy of a run for reading only, in the user's cache.

    Args:
        light: files of weights, checkpoints and teacher signals have their sizes and nothing in them.
        under: only what is below this path.

    Raises: what `fetch` raises.
    """
    target, heavy = copy_directory(remote, "read"), set[str]()

    def wanted(path: str) -> bool:
        if light and path.endswith(_HEAVY):
            heavy.add(path)
        return path not in heavy and (not under or path.startswith(f"{under}/"))

    state = _fetch(remote, target, options, wanted)
    for path in scan(target).keys() - state.files.keys():
        # What the run has removed since would be read as if it were its own.
        (target / path).unlink()
    for path in heavy & state.files.keys():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        with (target / path).open("ab") as file:
            file.truncate(size_of(state.files[path]))
    return target


def kept_copy(remote: str, options: Mapping[str, Any]) -> Path:
    """`fetched`, light, of a run that may not have begun; then the directory is empty or absent."""
    try:
        return fetched(remote, options=options, light=True)
    except NoRun:
        target = copy_directory(remote, "read")
        shutil.rmtree(target, ignore_errors=True)
        return target


def run_around(url: str) -> tuple[str, str]:
    """The run that a place in a store is in, and the place's path inside of it.

    Raises:
        NoRun: it is in no run.
    """
    run, inside = url.rstrip("/"), ""
    while run.partition("://")[2].count("/") >= 1:
        if read_state(Store(run, {})).number:
            return run, inside
        run, _, name = run.rpartition("/")
        inside = f"{name}/{inside}" if inside else name
    raise NoRun(f"{url}: this is in no run of a store\n    → name a run's output_dir, or a folder in it")


def bring(store: Store, files: Mapping[str, Parts], directory: Path) -> None:
    """Write files to a directory, but for those that are there as they should be."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in files:
        if not is_safe(path):
            raise damaged(path, "this name leads out of the run's directory")
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(lambda item: _bring(store, item[1], directory / item[0]), files.items()):
            pass


def is_there(path: Path, parts: Parts) -> bool:
    """Whether a file begins with what was sent of it."""
    try:
        if path.stat().st_size < size_of(parts):
            return False
    except OSError:
        return False
    offset = 0
    for part in parts:
        if hash_range(path, offset, part.length) != part.sha256:
            return False
        offset += part.length
    return True


def _bring(store: Store, parts: Parts, path: Path) -> None:
    if is_there(path, parts) and path.stat().st_size == size_of(parts):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if len(parts) == 1 and parts[0].offset == 0 and not parts[0].key.startswith(".easydistill/log/"):
            _read(parts[0].key, lambda: store.read_to(parts[0].key, made, parts[0].length))
        else:
            with made.open("wb") as file:
                for part in parts:
                    read = (part.key, part.offset, part.offset + part.length)
                    file.write(_read(part.key, lambda read=read: store.read(*read)))  # type: ignore[misc]
        if not is_there(made, parts) or made.stat().st_size != size_of(parts):
            raise damaged(parts[0].key, f"its bytes are not those that were sent of {path.name}")
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _read(key: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Absent:
        raise damaged(key, "this object is missing") from None


@dataclass(frozen=True)
class Record:
    """What a working directory is a copy of."""

    url: str
    owners: list[str]
    """Who has worked in it last, and before that. If one of them made the store's last commit, the directory has
    everything that the store has."""
    whole: bool = True
    """False while files are being fetched."""

    @classmethod
    def read(cls, directory: Path) -> Record | None:
        try:
            return cls(**read_json(directory / RECORD))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / RECORD, asdict(self))


def update(store: Store, state: State, directory: Path, owner: str, say: Callable[[str], None]) -> None:
    """Make a working directory go on from a state of the store, under a new owner.

    A directory whose own command made the store's last commit is ahead of it or level with it, and stays, but for ends
    of files that a crash has taken from the machine's disk and not from the store. Any other is brought up to date, as
    another machine has worked on the run since; replies in it that were never sent are put aside.

    Raises:
        StoreError: the directory has files of something else.
    """
    record, local = Record.read(directory), scan(directory) if directory.is_dir() else {}
    if not state.number:
        # A run that began on this machine alone is sent as it is.
        Record(store.url, [owner]).write(directory)
        return
    if (record is not None and record.url != store.url) or (record is None and local):
        raise StoreError(
            f"{directory}: there are files here that are not those of the run at {store.url}\n"
            "    → set storage.working_directory to another directory, or move these files away"
        )
    if record is not None and record.whole and state.owner in record.owners:
        behind = {
            path: parts
            for path, parts in state.files.items()
            if is_growing(path) and path in local and _is_beginning(store, directory / path, parts)
        }
        if behind:
            say(f"note: this machine has lost the ends of {', '.join(sorted(behind))}: fetching them from {store.url}")
            bring(store, behind, directory)
        Record(store.url, [owner, state.owner]).write(directory)
        return
    unsent = [path for path in local if path.endswith("journal.jsonl")] if record is not None and record.whole else []
    for path in unsent:
        if not _is_in(directory / path, state.files.get(path, ())):
            _put_aside(directory, path, say)
    Record(store.url, [], whole=False).write(directory)
    for path in local.keys() - state.files.keys():
        (directory / path).unlink(missing_ok=True)
    if state.files:
        say(f"fetching the run from {store.url}: {_amount(state.files.values())}")
    bring(store, state.files, directory)
    Record(store.url, [owner, state.owner]).write(directory)


def _is_in(path: Path, parts: Parts) -> bool:
    """Whether a file holds nothing but a beginning of what the store has of it, as far as whole parts tell."""
    left, offset = path.stat().st_size, 0
    for part in parts:
        if left < part.length:
            break
        if hash_range(path, offset, part.length) != part.sha256:
            return False
        left, offset = left - part.length, offset + part.length
    return left == 0


def _is_beginning(store: Store, path: Path, parts: Parts) -> bool:
    """Whether a file is shorter than what the store has of it, and nothing else."""
    left, offset = path.stat().st_size, 0
    if left >= size_of(parts):
        return False
    for part in parts:
        length = min(left, part.length)
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if length < part.length:
            return bool(data == _read(part.key, partial(store.read, part.key, part.offset, part.offset + length)))
        if sha256(data) != part.sha256:
            return False
        left, offset = left - length, offset + length
    return False


def _put_aside(directory: Path, path: str, say: Callable[[str], None]) -> None:
    number = 1
    while (target := directory / UNSENT / str(number) / path).exists():
        number += 1
    target.parent.mkdir(parents=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(directory / path, target)
    say(f"note: this run has gone on elsewhere; replies that were never sent from here are kept in {target}")


def _amount(files: Iterable[Parts]) -> str:
    sizes = [size_of(parts) for parts in files]
    return f"{len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB"
