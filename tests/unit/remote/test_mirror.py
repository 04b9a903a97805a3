"""A working directory and its store: nothing is lost, nothing is there in part, and no two commands go on together."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")

import fsspec
from fsspec.asyn import AsyncFileSystem
from tests.support.faulty_store import FaultyFileSystem

from easydistill.config.storage import StorageConfig
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import DataError, RunDirectoryBusy, StoreError
from easydistill.remote import compaction, patience
from easydistill.remote import store as store_module
from easydistill.remote.fetch import fetch
from easydistill.remote.history import LOG, read_state
from easydistill.remote.local import scan
from easydistill.remote.lock import KEY, RunTaken
from easydistill.remote.mirror import Mirror, mirrored
from easydistill.remote.store import Store, Trouble

URL = "faulty://bucket/run"
JOURNAL = "stages/1-label/journal.jsonl"


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    FaultyFileSystem.empty()
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    yield
    FaultyFileSystem.empty()


class Run:
    """A working directory that is mirrored, and what was told."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.said, self.stop = folder, list[str](), StopSignal()
        self.settings = StorageConfig(**{"send_seconds": 0.05, "lock_seconds": 1, **settings})

    def mirror(self) -> Mirror:
        return Mirror(URL, self.folder, self.settings, self.said.append, self.stop)

    def mirrored(self) -> Any:
        return mirrored(URL, self.folder, self.settings, self.said.append, self.stop)

    def journal(self) -> Journal:
        return Journal(self.folder / JOURNAL)

    def write(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def killed(run: Run) -> Mirror:
    """A mirror that is left as a kill leaves it: its threads stop, and its lock stays."""
    mirror = run.mirror()
    mirror.open()
    return mirror


def kill(mirror: Mirror) -> None:
    mirror._closed.set()
    mirror._ended.set()
    for thread in (*mirror._threads, mirror._life):
        thread.join()


def dead_owner() -> None:
    """Make the lock that of a process of this machine that is no more."""
    store = Store(URL, {})
    about = json.loads(store.read(KEY))
    store.put(KEY, json.dumps({**about, "pid": 2**22 + 1}).encode())


def contents(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in scan(folder)}


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    with run.mirrored():
        with run.journal() as journal:
            for number in range(50):
                journal.append({"key": str(number)})
        run.write("stages/1-label/labeled.json", "[]")
        run.write("stages/1-label/manifest.json", "{}")
        run.write("empty.json", "")
        run.write("log.txt", "no end of line")
    before = contents(run.folder)
    shutil.rmtree(run.folder)
    with run.mirrored():
        assert contents(run.folder) == before
    assert contents(fetch(URL, tmp_path / "fetched")) == before
    # What others read is there under its own name.
    assert Store(URL, {}).read(JOURNAL) == before[JOURNAL]
    assert KEY not in Store(URL, {}).names("")


def test_each_reply_is_in_the_store_before_it_counts(tmp_path: Path) -> None:
    run = Run(tmp_path / "work", each_reply=True, send_seconds=1000)
    mirror = killed(run)
    journal = run.journal()
    from easydistill.data.keeping import kept_by

    with kept_by(mirror.keep):
        for number in range(5):
            journal.append({"key": str(number)})
            state = read_state(Store(URL, {}))
            assert sum(part.length for part in state.files[JOURNAL]) == (run.folder / JOURNAL).stat().st_size
    kill(mirror)
    journal.close()


def test_many_pieces_become_few_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "COMMITS", 5)
    run = Run(tmp_path / "work", each_reply=True)
    with run.mirrored(), run.journal() as journal:
        for number in range(400):
            journal.append({"key": str(number)})
            time.sleep(0.001)
    state = read_state(Store(URL, {}))
    assert state.number > 400
    assert len(state.files[JOURNAL]) <= 3 * compaction.FAN
    assert len(Store(URL, {}).names("")) < 60
    assert contents(fetch(URL, tmp_path / "fetched"))[JOURNAL] == (run.folder / JOURNAL).read_bytes()


def test_a_line_that_is_cut_off_is_not_sent(tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    mirror = killed(run)
    run.write(JOURNAL, '[{"key":"1"}]\n[{"ke')
    mirror._send_files()
    kill(mirror)
    assert contents(fetch(URL, tmp_path / "fetched"))[JOURNAL] == b'[{"key":"1"}]\n'


def test_a_marker_waits_for_what_it_covers(tmp_path: Path) -> None:
    """Of a checkpoint whose upload is cut off, nothing looks complete."""
    run = Run(tmp_path / "work", send_seconds=1000)
    mirror = killed(run)
    run.write("stages/2-train/checkpoints/checkpoint-3/model.safetensors", "weights")
    run.write("stages/2-train/checkpoints/checkpoint-3/whole.json", "{}")
    path = run.folder / "stages/2-train/checkpoints/checkpoint-3/model.safetensors"
    marker = "stages/2-train/checkpoints/checkpoint-3/whole.json"

    def grow(operation: str, where: str) -> None:
        if where.endswith("model.safetensors"):
            path.write_text("other weights, written while they were sent")

    FaultyFileSystem.fault = staticmethod(grow)
    mirror._send_files(final=True)
    assert marker not in read_state(Store(URL, {})).files
    FaultyFileSystem.fault = staticmethod(lambda operation, where: None)
    mirror._send_files(final=True)
    assert marker in read_state(Store(URL, {})).files
    # Rotation: the marker leaves the state before its files.
    shutil.rmtree(path.parent)
    mirror._send_files()
    assert marker not in read_state(Store(URL, {})).files
    kill(mirror)


def test_a_checkpoint_that_is_removed_while_it_is_sent_does_not_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    folder = "stages/2-train/checkpoints/checkpoint-3"

    def rotate(operation: str, where: str) -> None:
        if operation == "put" and folder in where:
            shutil.rmtree(run.folder / folder, ignore_errors=True)

    with run.mirrored():
        FaultyFileSystem.fault = staticmethod(rotate)
        for number in range(4):
            run.write(f"{folder}/model-{number}.safetensors", "weights")
        run.write(f"{folder}/whole.json", "{}")
        run.write("stages/2-train/loss.json", "{}")
    assert not run.stop.requested
    files = read_state(Store(URL, {})).files
    assert "stages/2-train/loss.json" in files and not any(path.startswith(folder) for path in files)


def test_a_new_journal_does_not_wait_for_a_store_that_fails(tmp_path: Path) -> None:
    run, failing = Run(tmp_path / "work"), threading.Event()

    def fail(operation: str, where: str) -> None:
        if LOG in where and operation == "put" and not over.is_set():
            failing.set()
            raise OSError("503 SlowDown")

    over = threading.Event()
    with run.mirrored(), run.journal() as journal:
        FaultyFileSystem.fault = staticmethod(fail)
        journal.append({"key": "1"})
        assert failing.wait(10)
        with Journal(run.folder / "stages/2-judge/journal.jsonl") as second:
            second.append({"key": "2"})
        assert sum("works again" in line for line in run.said) == 0
        over.set()
    assert "stages/2-judge/journal.jsonl" in read_state(Store(URL, {})).files


def test_a_replaced_file_is_never_there_with_other_bytes(tmp_path: Path) -> None:
    """Whatever the moment, what the store holds can be fetched, and is what was written at some time."""
    run = Run(tmp_path / "work", send_seconds=1000)
    mirror = killed(run)
    found: list[str | None] = []

    def look(operation: str, where: str) -> None:
        if operation == "put" and not where.endswith("lock"):
            FaultyFileSystem.fault, own = staticmethod(lambda operation, where: None), FaultyFileSystem.fault
            files = contents(fetch(URL, tmp_path / f"fetched-{len(found)}"))
            found.append(files["summary.json"].decode() if "summary.json" in files else None)
            FaultyFileSystem.fault = staticmethod(own)

    FaultyFileSystem.fault = staticmethod(look)
    for text in ("running", "done"):
        run.write("summary.json", text)
        mirror._send_files(final=True)
    FaultyFileSystem.fault = staticmethod(lambda operation, where: None)
    kill(mirror)
    assert {None, "running"} == set(found)
    assert contents(fetch(URL, tmp_path / "last"))["summary.json"] == b"done"


def test_a_failing_store_is_told_once_and_loses_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    failures = iter(range(12))

    def fail(operation: str, where: str) -> None:
        if LOG in where and operation == "put" and next(failures, None) is not None:
            raise OSError("503 SlowDown")

    with run.mirrored(), run.journal() as journal:
        FaultyFileSystem.fault = staticmethod(fail)
        for number in range(30):
            journal.append({"key": str(number)})
            time.sleep(0.02)
    assert sum("fails: " in line for line in run.said) == 1
    assert sum("works again" in line for line in run.said) == 1
    assert contents(fetch(URL, tmp_path / "fetched"))[JOURNAL] == (run.folder / JOURNAL).read_bytes()


def test_a_store_that_stays_away_ends_the_run_and_the_same_command_resumes(tmp_path: Path) -> None:
    run = Run(tmp_path / "work", give_up_seconds=0.3)

    def fail(operation: str, where: str) -> None:
        raise PermissionError("Access Denied")

    with pytest.raises(StoreError, match="given up") as caught, run.mirrored():
        FaultyFileSystem.fault = staticmethod(fail)
        with run.journal() as journal:
            journal.append({"key": "paid"})
        assert run.stop._event.wait(10), "the run is told to stop"
    assert str(run.folder) in str(caught.value)
    FaultyFileSystem.fault = staticmethod(lambda operation, where: None)
    dead_owner()
    with run.mirrored(), run.journal() as journal:
        assert "paid" in journal
    assert b"paid" in contents(fetch(URL, tmp_path / "fetched"))[JOURNAL]


def test_no_access_is_told_at_once(tmp_path: Path) -> None:
    def fail(operation: str, where: str) -> None:
        raise PermissionError("Access Denied")

    FaultyFileSystem.fault = staticmethod(fail)
    started = time.monotonic()
    with pytest.raises(StoreError, match="Access Denied"), Run(tmp_path / "work").mirrored():
        raise AssertionError("it must not start")
    assert time.monotonic() - started < 5


def test_a_lost_answer_to_a_commit_is_no_conflict(tmp_path: Path) -> None:
    """The commit is in the store, but the connection broke before the store said so."""
    run = Run(tmp_path / "work")
    own, lost = FaultyFileSystem.pipe_file, []

    def lose(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        own(self, path, value, mode=mode, **options)
        if LOG in path and path not in lost:
            lost.append(path)
            raise ConnectionError("reset")

    FaultyFileSystem.pipe_file = lose  # type: ignore[method-assign]
    try:
        with run.mirrored(), run.journal() as journal:
            journal.append({"key": "1"})
    finally:
        FaultyFileSystem.pipe_file = own  # type: ignore[method-assign]
    assert lost
    assert contents(fetch(URL, tmp_path / "fetched"))[JOURNAL]


def test_a_second_command_waits_for_a_sign_of_life_and_is_refused(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "one"), Run(tmp_path / "two")
    with first.mirrored():
        with pytest.raises(RunDirectoryBusy, match="is working here"), second.mirrored():
            raise AssertionError("it must not start")
        assert any("waiting up to" in line for line in second.said)


def test_a_dead_command_is_followed_at_once_and_a_silent_one_after_its_time(tmp_path: Path) -> None:
    kill(killed(Run(tmp_path / "one")))
    dead_owner()
    second = Run(tmp_path / "two")
    kill(killed(second))
    assert not any("waiting" in line for line in second.said)
    third = Run(tmp_path / "three")
    started = time.monotonic()
    with third.mirrored():
        assert time.monotonic() - started >= 1
    assert any("stopped without a word" in line for line in third.said)


def test_a_slow_command_cannot_go_on_once_another_has(tmp_path: Path) -> None:
    slow, fast = Run(tmp_path / "slow"), Run(tmp_path / "fast")
    mirror = killed(slow)
    kill(mirror)
    with fast.mirrored(), fast.journal() as journal:
        journal.append({"key": "fast"})
        slow.write("stages/1-label/labeled.json", "[]")
        with pytest.raises(RunTaken, match="has gone on with this run"):
            mirror._send_files(final=True)
    assert "stages/1-label/labeled.json" not in read_state(Store(URL, {})).files


def test_replies_that_were_never_sent_are_kept_when_the_run_went_on_elsewhere(tmp_path: Path) -> None:
    here, there = Run(tmp_path / "here"), Run(tmp_path / "there")
    with here.mirrored(), here.journal() as journal:
        journal.append({"key": "1"})
    with here.journal() as journal:
        journal.append({"key": "unsent"})
    with there.mirrored(), there.journal() as journal:
        journal.append({"key": "2"})
    with here.mirrored(), here.journal() as journal:
        assert list(journal) == ["1", "2"]
    assert b"unsent" in (here.folder / "unsent/1" / JOURNAL).read_bytes()
    assert not any(path.startswith("unsent") for path in read_state(Store(URL, {})).files)


@pytest.mark.parametrize("left", [0, 30, 61])
def test_what_a_crash_took_from_the_disk_alone_comes_back(left: int, tmp_path: Path) -> None:
    """A machine that loses its power loses what was not written through, which the store may have."""
    run = Run(tmp_path / "work", each_reply=True, send_seconds=1000)
    mirror = killed(run)
    with run.journal() as journal:
        for number in range(5):
            journal.append({"key": f"paid {number}"})
            mirror.keep(run.folder / JOURNAL)
    kill(mirror)
    whole = (run.folder / JOURNAL).read_bytes()
    (run.folder / JOURNAL).write_bytes(whole[:left])
    dead_owner()
    with run.mirrored():
        assert (run.folder / JOURNAL).read_bytes() == whole
    assert any("has lost the ends of" in line for line in run.said)
    assert contents(fetch(URL, tmp_path / "fetched"))[JOURNAL] == whole


def test_a_command_that_sends_for_long_is_not_taken_for_dead(tmp_path: Path) -> None:
    first, second, sending = Run(tmp_path / "one"), Run(tmp_path / "two"), threading.Event()

    def slow(operation: str, where: str) -> None:
        if operation == "put" and where.endswith("model.safetensors"):
            sending.set()
            time.sleep(3)

    def work() -> None:
        with first.mirrored():
            first.write("student/model.safetensors", "weights")

    FaultyFileSystem.fault = staticmethod(slow)
    thread = threading.Thread(target=work)
    thread.start()
    assert sending.wait(10)
    with pytest.raises(RunDirectoryBusy, match="is working here"), second.mirrored():
        raise AssertionError("it must not start")
    thread.join()
    assert "student/model.safetensors" in read_state(Store(URL, {})).files
    assert KEY not in Store(URL, {}).names("")


def test_a_lock_that_is_released_just_now_is_no_missing_bucket(tmp_path: Path) -> None:
    with Run(tmp_path / "one").mirrored():
        pass
    put, gone = Store(URL, {}).put, list[str]()
    put(KEY, b"{}")

    def release(operation: str, where: str) -> None:
        if operation == "get" and where.endswith(KEY) and not gone:
            gone.append(where)
            Store(URL, {}).delete([KEY])

    FaultyFileSystem.fault = staticmethod(release)
    with Run(tmp_path / "two").mirrored():
        assert gone


class Mute(AsyncFileSystem):  # type: ignore[misc]
    """A store that has gone without closing its connections."""

    protocol = "mute"

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        await asyncio.sleep(1000)
        return b""

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        await asyncio.sleep(1000)


def test_a_store_that_never_answers_does_not_hold_a_run_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("mute", Mute, clobber=True)
    monkeypatch.setattr(store_module, "ANSWER", 0.1)
    store = Store("mute://bucket/run", {})
    for call in (lambda: store.read("a"), lambda: store.put("a", b"b"), lambda: store.create("a", b"b")):
        with pytest.raises(Trouble, match="a: FSTimeoutError"):
            call()


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path / "one").mirrored():
        pass
    other = Run(tmp_path / "two")
    other.write("thesis.txt", "mine")
    with pytest.raises(StoreError, match="not those of the run"), other.mirrored():
        raise AssertionError("it must not start")
    assert (tmp_path / "two/thesis.txt").read_text() == "mine"


def commits() -> list[str]:
    return Store(URL, {}).names(LOG)


def cut(key: str) -> None:
    store = Store(URL, {})
    store.put(key, store.read(key)[:-3])


@pytest.mark.parametrize("harm", ["missing", "cut", "swapped"])
def test_damaged_commits_are_noticed(harm: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "work", each_reply=True, send_seconds=1000)
    mirror = killed(run)
    for number in range(4):
        run.write(JOURNAL, "".join(f'[{{"key":"{n}"}}]\n' for n in range(number + 1)))
        mirror.keep(run.folder / JOURNAL)
    kill(mirror)
    store, keys = Store(URL, {}), commits()
    if harm == "missing":
        store.delete([keys[2]])
    elif harm == "cut":
        cut(keys[2])
    else:
        store.put(keys[2], store.read(keys[3]))
    with pytest.raises(DataError, match=keys[2]):
        fetch(URL, tmp_path / "fetched")


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_damaged_files_are_noticed(harm: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    with run.mirrored():
        run.write("stages/1-label/labeled.json", "[1]")
    if harm == "missing":
        Store(URL, {}).delete(["stages/1-label/labeled.json"])
    else:
        Store(URL, {}).put("stages/1-label/labeled.json", b"[2]")
    with pytest.raises(DataError, match=r"labeled\.json"):
        fetch(URL, tmp_path / "fetched")


def test_a_run_of_this_machine_alone_is_sent_as_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path / "work")
    run.write("stages/1-label/manifest.json", "{}")
    with run.mirrored():
        pass
    assert "stages/1-label/manifest.json" in contents(fetch(URL, tmp_path / "fetched"))


def test_fetching_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "COMMITS", 4)
    run, over = Run(tmp_path / "work", each_reply=True), threading.Event()

    def work() -> None:
        with run.mirrored(), run.journal() as journal:
            number = 0
            while not over.is_set():
                number += 1
                journal.append({"key": str(number)})
                run.write("summary.json", str(number))
                time.sleep(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    sizes = []
    for number in range(5):
        found = contents(fetch(URL, tmp_path / f"fetched-{number}"))
        sizes.append(len(found[JOURNAL].splitlines()))
        assert [json.loads(line)[0]["key"] for line in found[JOURNAL].splitlines()] == [
            str(n + 1) for n in range(sizes[-1])
        ]
    over.set()
    thread.join()
    assert sizes == sorted(sizes)
