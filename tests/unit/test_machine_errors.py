"""Errors of the system and of libraries, told as what the machine lacks."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from easydistill.asking.outputs import labeled_path_issues
from easydistill.data import journal as journals
from easydistill.data.files import replacing, sync, write_text
from easydistill.data.journal import Journal
from easydistill.data.unwritten import forget_unwritten, unwritten_of_this_process
from easydistill.engine.machine import machine_error
from easydistill.engine.machine.attempts import NAME, attempted
from easydistill.engine.machine.room import Needed, check_room, check_writable
from easydistill.engine.machine.stages import explained_machine
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.secrets import Redactor
from easydistill.errors import (
    EXIT_MACHINE,
    DataError,
    MachineError,
    ModelError,
    OutOfMemory,
    RunDirectoryBusy,
    StorageError,
    StoreError,
    TeacherError,
)
from easydistill.launch.failures import Failures, RankOutOfMemory
from easydistill.launch.messages import sendable


def of_system(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name) if name else OSError(number, os.strerror(number))


def caused(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


RUST = "Error while serializing: I/O error: No space left on device (os error 28)"
CPU = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of_system(errno.ENOSPC, "/runs/kd/a"), "/runs/kd/a: no space is left"),
        (of_system(errno.ENOSPC), "no space is left"),
        (of_system(errno.EDQUOT, "/runs/a"), "/runs/a: your quota there is used up"),
        (of_system(errno.EROFS, "/runs/a"), "the file system is read-only"),
        (of_system(errno.EIO, "/runs/a"), "the disk or the share has failed"),
        (of_system(errno.ESTALE, "/runs/a"), "the share does not answer as it did"),
        (of_system(errno.ETIMEDOUT, "/runs/a"), "the share does not answer as it did"),
        (of_system(errno.EACCES, "/etc/shadow"), "permission denied (/etc/shadow is root's, -"),
        (of_system(errno.EMFILE, "/runs/a"), "too many files are open (ulimit -n: "),
        (SafetensorError(RUST), "no space is left"),
        (
            RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file"),
            "no space",
        ),
        (OSError("[Errno 28] Error writing bytes. Detail: [errno 28] No space left on device"), "no space is left"),
        (Exception("Disk quota exceeded (os error 122)"), "your quota there is used up"),
        (caused(DataError("x"), of_system(errno.ENOSPC, "/runs/b")), "/runs/b: no space is left"),
        (ExceptionGroup("several", [ValueError("x"), of_system(errno.ENOSPC)]), "no space is left"),
    ],
)
def test_errors_of_storage(error: Exception, words: str, tmp_path: Path) -> None:
    found = machine_error(error, tmp_path)
    assert isinstance(found, StorageError) and found.exit_code == EXIT_MACHINE
    assert words in str(found)
    assert "run the same command again" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        of_system(errno.ENOMEM),
        RuntimeError(CPU),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15 GiB"),
        RuntimeError("std::bad_alloc"),
        caused(ModelError("teacher: cannot be loaded"), RuntimeError(CPU)),
    ],
)
def test_errors_of_memory(error: Exception, tmp_path: Path) -> None:
    found = machine_error(error, tmp_path, lambda: ["training.per_device_train_batch_size=2"])
    assert isinstance(found, OutOfMemory) and found.exit_code == EXIT_MACHINE
    assert str(found).startswith("memory has run out")
    assert "training.per_device_train_batch_size=2" in str(found)


def test_an_error_of_the_gpu_says_so_and_is_found_by_its_class(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    found = machine_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), tmp_path)
    assert str(found).startswith("memory has run out on the GPU: CUDA out of memory. Tried to allocate 2.00 GiB\n")


def test_threads_that_cannot_be_started(tmp_path: Path) -> None:
    found = machine_error(RuntimeError("can't start new thread"), tmp_path)
    assert type(found) is MachineError and "no more threads or processes can be started" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        FileNotFoundError(errno.ENOENT, "no such file", "/x"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        of_system(errno.ETIMEDOUT),
        TeacherError("server 1 says: CUDA out of memory"),
        caused(StoreError("s3://bucket/run: has failed for 600 s"), of_system(errno.EIO, "bucket/run/a")),
        DataError("line 3: No space left on device is no answer"),
    ],
)
def test_other_errors_are_none_of_the_machine(error: Exception, tmp_path: Path) -> None:
    assert machine_error(error, tmp_path) is None


def test_what_was_handled_and_put_out_of_sight_is_no_reason(tmp_path: Path) -> None:
    error = ValueError("x")
    error.__context__ = of_system(errno.ENOSPC)
    assert machine_error(error, tmp_path) is not None
    error.__suppress_context__ = True
    assert machine_error(error, tmp_path) is None
    # What somebody was ready for: a file that may be read or not, a pipe that is empty.
    for expected in (of_system(errno.EACCES, "/etc/shadow"), BlockingIOError(errno.EAGAIN, "again")):
        error = ValueError("x")
        error.__context__ = expected
        assert machine_error(error, tmp_path) is None


def test_errors_of_the_machine_are_sent_between_processes_as_they_are(tmp_path: Path) -> None:
    for error in (of_system(errno.ENOSPC, "/runs/a"), RuntimeError(CPU)):
        found = machine_error(error, tmp_path)
        assert found is not None
        again: Any = pickle.loads(pickle.dumps(sendable(found)))
        assert type(again) is type(found) and str(again) == str(found) and again.exit_code == EXIT_MACHINE


# --- files ------------------------------------------------------------------------------------------------------------


def failing(number: int) -> Callable[..., int]:
    def fail(*_: Any) -> int:
        raise of_system(number)

    return fail


def test_a_file_that_fails_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as raised, replacing(tmp_path / "report.html") as temporary:
        temporary.write_text("half")
        raise of_system(errno.ENOSPC)
    assert raised.value.filename == str(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_share_without_fsync_is_good_enough_and_one_that_fails_in_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    write_text(tmp_path / "a", "text")
    sync(0)
    monkeypatch.setattr(os, "fsync", failing(errno.EDQUOT))
    with pytest.raises(OSError, match="quota"):
        write_text(tmp_path / "b", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_may_not_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"output_dir: .*file/run: a part of this path is a file"):
        check_writable(tmp_path / "file" / "run", "output_dir")
    check_writable(tmp_path / "deep" / "run", "output_dir")
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "run"]


def test_an_output_that_cannot_be_written_is_told_before_anything_is_paid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (issue,) = labeled_path_issues(str(tmp_path / "file" / "labels.json"))
    assert issue.path == "dataset.labeled_path" and "file is a file, not a directory" in issue.problem
    assert not labeled_path_issues(str(tmp_path / "new" / "deep" / "labels.json"))
    assert not (tmp_path / "new").exists()


def test_room_is_refused_where_it_lacks_for_certain_and_told_where_it_may(tmp_path: Path) -> None:
    huge = 1 << 60
    assert check_room(tmp_path / "not" / "there", Needed(1, 2), "this run") is None
    told = check_room(tmp_path, Needed(1, huge), "this run")
    assert told is not None and told.startswith("this run may need 1,152,921,504.6 GB of disk, and ")
    with pytest.raises(StorageError, match="are needed at"):
        check_room(tmp_path, Needed(huge, huge), "this run")


def test_locks_that_a_share_does_not_have_are_this_machines_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path / "cache"))
    real = fcntl.flock

    def flock(handle: Any, how: int) -> None:
        if str(handle.name).endswith(".lock"):
            raise of_system(errno.ENOLCK)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        RunDirectory(tmp_path / "run").locked(),
        pytest.raises(RunDirectoryBusy),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass
    with RunDirectory(tmp_path / "run").locked():
        pass


def test_a_log_that_is_not_whole_is_not_pointed_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    with run.logging(Redactor()):
        logger = logging.getLogger("easydistill")
        logger.error("first")
        assert run.log_is_whole
        handler = next(one for one in logger.handlers if getattr(one, "baseFilename", "") == str(run.log))
        assert isinstance(handler, logging.FileHandler)
        handler.stream.close()
        handler.stream = open("/dev/full", "w", encoding="utf-8")  # noqa: PTH123, SIM115 (a device)
        logger.error("second")
        assert not run.log_is_whole
        handler.close()
    assert "Logging error" not in capsys.readouterr().err


# --- the journal ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EASYDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(journals, "WAITS", (0.0,))
    forget_unwritten()
    return tmp_path / "cache" / "unwritten"


def refusing(monkeypatch: pytest.MonkeyPatch, path: Path, number: int, takes: int = 0) -> None:
    """Let one file take only so many bytes of each write, and then fail."""
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{descriptor}").resolve() != path.resolve():
            return real(descriptor, data)
        if takes and len(data) > takes:
            return real(descriptor, data[:takes])
        raise of_system(number)

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_records_that_a_disk_does_not_take_come_back(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a", "n": 1})
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            refusing(patch, path, number, takes=9)
            for key in ("b", "c"):
                with pytest.raises(OSError) as raised:
                    journal.append({"key": key, "n": 2})
                assert raised.value.errno == number and raised.value.filename == str(path)
        assert path.read_bytes() == before
        (kept,) = unwritten_of_this_process()
        assert kept.records == 2 and kept.lost == 0
        assert f"2 records that journal.jsonl did not take are kept in {kept.path}" in str(
            machine_error(raised.value, tmp_path)
        )
        # Beside a process that still works, `plan` reads the journal and takes nothing.
        with Journal(path) as other:
            assert list(other) == ["a"]
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    with Journal(path) as journal:
        assert list(journal) == ["a", "b", "c"] and journal.superseded == 0
    assert not list(cache.iterdir())
    assert [json.loads(line)[0]["key"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_what_a_share_forgets_at_fsync_comes_back_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append({"key": "a"})
    journal.append({"key": "b"})
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve() == path.resolve():
            raise of_system(errno.EDQUOT)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="quota"):
        journal.close()
    monkeypatch.setattr(os, "fsync", real)
    # The share has forgotten the second line only.
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with Journal(path) as journal:
        assert list(journal) == ["a", "b"] and journal.superseded == 0


def test_what_no_place_takes_is_said_to_be_lost(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "j") as journal:
        monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
        with pytest.raises(OSError, match="No space") as raised:
            journal.append({"key": "a"})
    told = str(machine_error(raised.value, tmp_path))
    assert "1 records found no place on this machine, and are lost" in told
    assert not list(cache.iterdir())


def test_lines_of_another_user_are_not_taken(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    path = tmp_path / "journal.jsonl"
    from easydistill.data.unwritten import Unwritten

    (cache / Unwritten(path)._name).write_text('[{"key":"forged"}]\n')
    with Journal(path) as journal:
        assert not len(journal)


# --- processes that the kernel ends -----------------------------------------------------------------------------------


def test_a_process_that_the_kernel_ended_is_told_with_settings(tmp_path: Path) -> None:
    class Stage:
        def less_memory(self) -> list[str]:
            return ["training.gradient_checkpointing=true"]

    with pytest.raises(RankOutOfMemory) as raised, explained_machine(tmp_path, Stage()):
        Failures().add(RankOutOfMemory("process 1 of the stage was killed by SIGKILL"))
    assert raised.value.exit_code == EXIT_MACHINE
    assert "training.gradient_checkpointing=true" in str(raised.value)


def test_the_next_attempt_says_that_the_kernel_ended_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = iter([3, 4, 4])
    monkeypatch.setattr("easydistill.engine.machine.attempts.killed_for_memory", lambda: next(killed))
    said: list[str] = []
    with attempted(tmp_path, said.append, list):
        left = (tmp_path / NAME).read_text()
    assert not said and not (tmp_path / NAME).exists()
    (tmp_path / NAME).write_text(left)
    with attempted(tmp_path, said.append, lambda: ["training.gradient_checkpointing=true"]):
        pass
    assert "the kernel ended the last attempt because memory had run out" in said[0]
    assert "training.gradient_checkpointing=true" in said[1]
