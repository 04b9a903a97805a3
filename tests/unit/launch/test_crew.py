"""Commands that share a run: who may join, what each hears of the others' end. Nothing is trained here."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.several import free_port

from easydistill import api
from easydistill.config.job import JobConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError, EasyDistillError, Interrupted
from easydistill.launch import crew as crew_module
from easydistill.launch import helper as helper_module
from easydistill.launch.crew import Crew, NodeLost
from easydistill.launch.helper import End, Helper, LeaderLost, NotShared
from easydistill.launch.place import Place

JOB = api.load({
    "job_type": "white_box_kd_local",
    "dataset": {"labeled_path": "rows.json"},
    "models": {"teacher": "teacher", "student": "student"},
}).job  # fmt: skip


class Run:
    """One run: a crew, and helpers in threads."""

    def __init__(self, directory: Path, count: int = 2) -> None:
        self.directory, self.count, self.port = directory, count, free_port()
        self.stop = StopSignal()
        self.said: list[str] = []
        self.crews: list[Crew] = []
        self.helpers: list[Helping] = []

    def place(self, index: int) -> Place:
        return Place(index, self.count, "a test", nodes=self.count, address=("127.0.0.1", self.port))

    def lead(self) -> Crew:
        self.crews.append(Crew(self.place(0), self.directory, self.stop, self.said.append))
        return self.crews[-1]

    def help(self, index: int = 1, directory: Path | None = None, job: JobConfig = JOB) -> Helping:
        helper = Helper(self.place(index), job, directory or self.directory, StopSignal(), self.said.append)
        self.helpers.append(Helping(helper))
        return self.helpers[-1]

    def wait_until_said(self, text: str) -> None:
        ends = time.monotonic() + 20
        while not any(text in line for line in self.said):
            assert time.monotonic() < ends, self.said
            time.sleep(0.01)


class Helping(threading.Thread):
    """A helper at work."""

    def __init__(self, helper: Helper) -> None:
        super().__init__(daemon=True)
        self.helper = helper
        self.made: End | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.made = self.helper.help(ranks=1)
        except BaseException as error:
            self.made = error

    def ended(self, seconds: float = 20) -> Any:
        self.join(seconds)
        assert not self.is_alive()
        return self.made

    def vanish(self) -> None:
        """End as a killed process does."""
        self.helper._link.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(crew_module, "FAREWELL", 0.5)
    made = Run(tmp_path)
    yield made
    for crew in made.crews:
        crew.end(0, "")
    for helping in made.helpers:
        helping.helper._stop.request()
        helping.join(10)


def test_a_helper_ends_as_the_run_does(run: Run) -> None:
    # It may come first.
    helping = run.help()
    crew = run.lead()
    run.wait_until_said("node 1 of 2 has joined")
    crew.end(3, "")
    assert helping.ended() == End(3, "")


def test_a_helper_that_comes_after_a_quick_end_is_told_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "FAREWELL", 20.0)
    crew = run.lead()
    ending = threading.Thread(target=crew.end, args=(2, "3 problems"))
    ending.start()
    assert run.help().ended() == End(2, "3 problems")
    ending.join(5)
    assert not ending.is_alive()


def test_a_helper_whose_leader_is_gone_says_so_at_once(run: Run) -> None:
    crew, helping = run.lead(), run.help()
    crew._gather()
    for helper in list(crew._helpers.values()):
        helper.link.close()
    error = helping.ended(5)
    assert isinstance(error, LeaderLost) and "node 0 is gone" in str(error)


def test_a_helper_waits_for_its_leader_no_longer_than_it_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_module, "ARRIVE", 0.6)
    error = run.help().ended(10)
    assert isinstance(error, LeaderLost) and "node 0 did not come within" in str(error)


def test_ctrl_c_while_nobody_is_there(run: Run) -> None:
    helping = run.help()
    helping.helper._stop.request()
    assert isinstance(helping.ended(10), Interrupted)


@pytest.mark.parametrize("other_key", [False, True])
def test_storage_that_is_not_shared(other_key: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_module, "UNSEEN", 0.3)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if other_key:
        (elsewhere / "nodes.key").write_text("of another run")
    run.lead()
    monkeypatch.setattr(helper_module, "AGAIN", 0.05)
    error = run.help(directory=elsewhere).ended()
    assert isinstance(error, NotShared)
    assert str(elsewhere) in str(error) and "put output_dir on storage that all machines see" in str(error)
    run.wait_until_said("127.0.0.1 does not see this run directory")
    # It has tried several times.
    assert sum("refused" in line for line in run.said) == 1


def test_another_path_to_the_same_storage(run: Run, tmp_path: Path) -> None:
    run.lead()
    other = tmp_path.parent / f"{tmp_path.name}-mounted"
    other.symlink_to(tmp_path)
    error = run.help(directory=other).ended()
    assert isinstance(error, EasyDistillError)
    assert f"the run directory is {other} here and {tmp_path} on the first machine" in str(error)


def test_two_helpers_of_one_name(run: Run) -> None:
    run.lead()
    run.help()
    run.wait_until_said("has joined")
    assert "there is a node 1 already, at 127.0.0.1" in str(run.help().ended())


def test_another_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.lead()
    monkeypatch.setattr(helper_module, "VERSION", "0.0.1")
    assert "easydistill is 0.0.1 here" in str(run.help().ended())


def test_a_helper_that_is_lost_may_come_back(run: Run) -> None:
    crew, helping = run.lead(), run.help()
    run.wait_until_said("has joined")
    helping.vanish()
    run.wait_until_said("node 1 is gone; it may be started again")
    run.said.clear()
    again = run.help()
    run.wait_until_said("has joined")
    crew._gather()
    crew.end(0, "")
    assert again.ended() == End(0, "")


def test_a_helper_that_does_not_come(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "JOIN", 0.3)
    crew = run.lead()
    with pytest.raises(NodeLost, match="node 1 did not come within"):
        crew._gather()
    assert run.said == ["  waiting for node 1"]


def test_ctrl_c_on_any_machine_stops_the_run(run: Run) -> None:
    crew, helping = run.lead(), run.help()
    run.wait_until_said("has joined")
    helping.helper._stop.request()
    ends = time.monotonic() + 10
    while not run.stop.requested and time.monotonic() < ends:
        time.sleep(0.01)
    assert run.stop.requested
    crew.end(130, "stopped")
    assert helping.ended() == End(130, "stopped")


def test_strangers_do_not_disturb(run: Run) -> None:
    crew = run.lead()
    for sent in (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 200, b"\0\0\0\2" + bytes(32) + b"{}", b""):
        with socket.create_connection(("127.0.0.1", run.port)) as stranger:
            stranger.sendall(sent)
    helping = run.help()
    run.wait_until_said("has joined")
    crew.end(0, "")
    assert helping.ended() == End(0, "")


def test_a_taken_port_is_told(run: Run) -> None:
    with socket.create_server(("", run.port)), pytest.raises(ConfigError, match=f"port {run.port} cannot be used"):
        run.lead()
