"""Carries a working directory to its store while the run works.

One thread sends what files have grown by, every `send_seconds`; another one sends whole files, which may take long; a
third gives signs of life, from the first moment to the last. Commits are made one after another. At every moment the
store is a state from which the run resumes:

- a file is in a commit only once it is in the store completely;
- a marker (`manifest.json` of a stage, `whole.json` of a checkpoint) is in a commit only with all that it covers;
- a file that is to be replaced leaves the state first, and what has left the state is deleted last.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from easydistill.config.storage import StorageConfig
from easydistill.data.keeping import kept_by
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import EasyDistillError, StoreError
from easydistill.remote import compaction
from easydistill.remote.fetch import update
from easydistill.remote.history import (
    LOG,
    PARTS,
    SNAPSHOTS,
    Change,
    State,
    encode_commit,
    log_key,
    own_part,
    read_state,
    snapshot_key,
)
from easydistill.remote.local import Seen, covers, is_growing, is_marker, scan, seen
from easydistill.remote.lock import BEATS, RemoteLock, taken
from easydistill.remote.patience import Patience
from easydistill.remote.store import Exists, Store
from easydistill.remote.tails import Piece, Tail, next_piece
from easydistill.remote.uploads import Round, Uploads

_CLOSING = 30.0
"""Seconds in which a run that has failed still tries to send what it has."""


@contextlib.contextmanager
def mirrored(
    url: str, directory: Path, settings: StorageConfig, say: Callable[[str], None], stop: StopSignal
) -> Iterator[None]:
    """Work in a directory that is kept in a store.

    Args:
        url: the run's place in the store.
        directory: where it works; no other process does, as the caller has locked it.
        stop: requested if the store fails for too long, or another command has gone on with the run.

    Raises:
        StoreError: the store has failed for too long.
        RunDirectoryBusy: another command is at work, or has gone on with the run.
        DataError: the store's objects are damaged.
    """
    mirror = Mirror(url, directory, settings, say, stop)
    mirror.open()
    try:
        with kept_by(mirror.keep):
            yield
    except BaseException:
        ended = mirror.problem
        mirror.close(failed=True)
        if ended is not None:
            raise ended from None
        if mirror.problem is not None:
            # The run's own error is the one to raise.
            say(f"warning: {mirror.problem}")
        raise
    mirror.close(failed=False)
    if mirror.problem is not None:
        raise mirror.problem


class Mirror:
    """A working directory's mirror; the arguments are those of `mirrored`."""

    def __init__(
        self, url: str, directory: Path, settings: StorageConfig, say: Callable[[str], None], stop: StopSignal
    ) -> None:
        self.problem: EasyDistillError | None = None
        """Why nothing is sent any more."""
        self._store = Store(url, settings.options)
        directory = self._directory = directory.absolute()
        self._settings, self._say, self._stop = settings, say, stop
        self._patience = Patience(settings.give_up_seconds, say, url, directory)
        self._remote_lock = RemoteLock(self._store, settings.lock_seconds, say)
        self._uploads = Uploads(self._store, directory, self._patience.attempt)
        self._state = State()
        self._tails: dict[str, Tail] = {}
        self._gone: set[str] = set()
        self._commits = threading.RLock()
        """Held by who makes a commit; guards the state and the tails, but for new ones."""
        self._closed = threading.Event()
        self._threads = [
            self._thread(name, work, settings.send_seconds, self._closed)
            for name, work in (("tails", self._send_tails), ("files", self._send_files))
        ]
        self._ended = threading.Event()
        self._life = self._thread("life", self._live, settings.lock_seconds / BEATS, self._ended)

    @property
    def _owner(self) -> str:
        return self._remote_lock.owner

    # --- beginning and end --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the run, and bring the directory up to date."""

        def first(call: Callable[[], Any]) -> Any:
            return self._patience.attempt(call, first=True)

        self._remote_lock.acquire(first)
        try:
            # What is fetched may take longer than a lock lasts.
            self._life.start()
            self._state = first(lambda: read_state(self._store))
            self._patience.attempt(lambda: update(self._store, self._state, self._directory, self._owner, self._say))
            with self._commits:
                # From here on, an earlier owner that was only slow cannot commit any more.
                self._commit(Change())
            for path, parts in self._state.files.items():
                if is_growing(path):
                    self._tails[path] = Tail.resumed(self._directory / path, parts)
        except BaseException:
            self._end_life()
            with contextlib.suppress(EasyDistillError):
                self._remote_lock.release()
            raise
        if not self._store.is_exclusive:
            self._say(
                "note: this store cannot refuse to overwrite: never start two commands on one run (docs/remote.md)"
            )
        for thread in self._threads:
            thread.start()

    def close(self, *, failed: bool) -> None:
        """Send what is left."""
        self._closed.set()
        if failed:
            self._patience.seconds = min(self._patience.seconds, _CLOSING)
        for thread in self._threads:
            thread.join()
        if self.problem is None:
            self._guarded(self._finish)
        self._end_life()
        if self.problem is None:
            self._guarded(lambda: self._patience.attempt(self._remote_lock.release))
        if self.problem is None:
            self._say(f"kept in {self._store.url} (working copy: {self._directory})")

    def _finish(self) -> None:
        # The second look takes what is deleted only after it was missed twice, and what the first found unsettled.
        for _ in range(2):
            self._send_files(final=True)
        self._compact()
        self._publish()
        self._sweep()

    def _end_life(self) -> None:
        """Before the lock is released, which a late sign of life would take again."""
        self._ended.set()
        if self._life.is_alive():
            self._life.join()

    # --- threads ------------------------------------------------------------------------------------------------------

    def _thread(self, name: str, work: Callable[[], Any], pause: float, ended: threading.Event) -> threading.Thread:
        def repeat() -> None:
            while self.problem is None and not ended.wait(pause):
                self._guarded(work)

        return threading.Thread(target=repeat, daemon=True, name=f"mirror-{name}")

    def _live(self) -> None:
        self._patience.attempt(self._remote_lock.beat)

    def _guarded(self, work: Callable[[], Any]) -> None:
        """Do something; if it fails for good, end the run."""
        try:
            work()
        except EasyDistillError as error:
            self._fail(error)
        except Exception as error:
            LOGGER.exception("the mirror has failed")
            log = self._directory / "log.txt"
            see = f"\n    → see {log}" if log.is_file() else ""
            self._fail(StoreError(f"{self._store.url}: {type(error).__name__}: {error}{see}"))

    def _fail(self, error: EasyDistillError) -> None:
        if self.problem is None:
            self.problem = error
            LOGGER.error("nothing is sent any more: %s", error)
        self._patience.hurry.set()
        self._stop.request()

    def keep(self, path: Path) -> None:
        """A journal has a new record. With `each_reply`, returns once the store has it.

        Raises:
            EasyDistillError: it will not have it.
        """
        if not path.absolute().is_relative_to(self._directory):
            return
        name = path.absolute().relative_to(self._directory).as_posix()
        # Without the lock of the commits: while the store fails, the run is not to wait for it.
        self._tails.setdefault(name, Tail())
        if self._settings.each_reply:
            if self.problem is None:
                self._guarded(lambda: self._send_tails([name]))
            if self.problem is not None:
                raise self.problem

    # --- commits ------------------------------------------------------------------------------------------------------

    def _commit(self, change: Change) -> None:
        data = encode_commit(self._state, change, self._owner)
        try:
            self._patience.attempt(lambda: self._store.create(log_key(self._state.number + 1), data))
        except Exists:
            raise taken(self._store.url) from None
        self._state = self._state.after(change, data, self._owner)

    def _send_tails(self, only: Iterable[str] | None = None, *, final: bool = False) -> None:
        """Commit what files have grown by."""
        with self._commits:
            while pieces := self._pieces(list(self._tails if only is None else only), final):
                put, grown, payload = {}, {}, bytearray()
                for path, piece in pieces.items():
                    part = own_part(piece.data, len(payload))
                    payload += piece.data
                    if piece.start:
                        grown[path] = part
                    else:
                        put[path] = (part,) if piece.data else ()
                self._commit(Change(put, grown, payload=bytes(payload)))
                self._tails |= {path: piece.after for path, piece in pieces.items()}

    def _pieces(self, paths: list[str], final: bool) -> dict[str, Piece]:
        found = {path: next_piece(self._directory / path, self._tails[path], final=final) for path in paths}
        return {path: piece for path, piece in found.items() if piece is not None}

    def _send_files(self, *, final: bool = False) -> None:
        """Commit the files that are new or changed, and forget those that are gone."""
        found = scan(self._directory)
        with self._commits:
            for path in found:
                if is_growing(path):
                    self._tails.setdefault(path, Tail())
            files = dict(self._state.files)
        missing = files.keys() - found.keys()
        gone = {path for path in missing if final or is_marker(path) or path in self._gone}
        self._gone = missing
        new = self._uploads.look(found, files, final=final)
        replaced = {path for path in new.put if any(part.key == path for part in files.get(path, ()))}
        early = replaced | {path for path in gone if is_marker(path)}
        if early:
            with self._commits:
                self._commit(Change(removed=tuple(sorted(early))))
        self._uploads.send(new, files)
        # What markers cover may have grown until they were written.
        self._send_tails(final=final)
        with self._commits:
            self._leave_out_markers(new, found)
            late = tuple(sorted(gone - early))
            if new.put or late:
                self._commit(Change(put=new.put, removed=late))
            for path in gone:
                self._tails.pop(path, None)
        self._uploads.committed(new)
        if gone:
            self._patience.attempt(lambda: self._store.delete(sorted(gone)))
        if compaction.is_due(self._state):
            self._compact()

    def _leave_out_markers(self, new: Round, found: dict[str, Seen]) -> None:
        """Of a round, keep only the markers that are still there, and whose files have all arrived."""
        for marker in [path for path in new.put if is_marker(path)]:
            unsent = any(covers(marker, path) for path in new.unsettled) or any(
                covers(marker, path) and not self._is_sent(path, look.size)
                for path, look in found.items()
                if is_growing(path)
            )
            if unsent or seen(self._directory, marker) != new.looks[marker]:
                del new.put[marker]

    def _is_sent(self, path: str, size: int) -> bool:
        tail = self._tails.get(path)
        return tail is not None and tail.known and tail.sent >= size

    # --- housekeeping -------------------------------------------------------------------------------------------------

    def _compact(self) -> None:
        """Put commits together; remove what they replace once another commit has shown that the run is still ours."""
        with self._commits:
            before = self._state
        after = compaction.compacted(self._store, before, self._directory, self._owner, self._patience.attempt)
        with self._commits:
            self._commit(Change())
            files = dict(self._state.files)
            for path, parts in after.files.items():
                now, old = files.get(path), before.files[path]
                if now is not None and now[: len(old)] == old:
                    files[path] = (*parts, *now[len(old) :])
            self._state = State(self._state.number, self._state.digest, files, after.since, self._owner)
        kept = {part.key for parts in self._state.files.values() for part in parts} | {snapshot_key(after.since)}
        later = log_key(after.since)
        old_keys = [
            key
            for folder in (LOG, SNAPSHOTS, PARTS)
            for key in self._patience.attempt(lambda folder=folder: self._store.names(folder))  # type: ignore[misc]
            if key not in kept and not (folder == LOG and key > later)
        ]
        self._patience.attempt(lambda: self._store.delete(old_keys))

    def _publish(self) -> None:
        """Put whole copies of files that grow under their own names, for people and other programs."""
        for path, parts in self._state.files.items():
            if (
                is_growing(path)
                and not (len(parts) == 1 and parts[0].key == path)
                and (self._directory / path).is_file()
            ):
                self._patience.attempt(lambda path=path: self._store.put_file(path, self._directory / path))  # type: ignore[misc]

    def _sweep(self) -> None:
        """Remove what attempts that were killed have left under names of stages."""
        mine = set(self._state.files)
        found = self._patience.attempt(lambda: self._store.names("stages"))
        self._patience.attempt(lambda: self._store.delete([key for key in found if key not in mine]))
