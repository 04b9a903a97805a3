"""The runner: what is complete is skipped, what changed runs again, what failed keeps its progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from easydistill.data.manifest import Manifest, RowCounts
from easydistill.data.records import Rejection
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.runner import Runner
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigError, ConfigIssue, DataError, Interrupted, RunDirectoryBusy


class Fake:
    """A stage that writes `text`, and counts its runs."""

    def __init__(self, name: str, text: str = "x", inputs: Sequence[str] = (), **config: Any) -> None:
        self.name, self.text, self.inputs, self.config = name, text, inputs, config
        self.runs = 0
        self.fails = False
        self.issues: list[ConfigIssue] = []

    def preflight(self) -> list[ConfigIssue]:
        return self.issues

    def fingerprint(self) -> dict[str, Any]:
        return self.config

    def estimate(self, directory: Path) -> Estimate:
        return Estimate()

    def run(self, context: StageContext) -> StageResult:
        self.runs += 1
        with (context.directory / "progress").open("a") as handle:
            handle.write("1")
        if self.fails:
            raise DataError("broken")
        (context.directory / "out.txt").write_text(self.text)
        rejection = Rejection("r1", self.name, "bad", "key is sk-secret-1", 2, {"x": 1})
        return StageResult(("out.txt",), RowCounts(2, 1, {"bad": 1}), (rejection,), {"n": 3}, {"m": 1.0})


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def runner(directory: RunDirectory, stop: StopSignal | None = None, lines: list[str] | None = None) -> Runner:
    redactor = Redactor()
    redactor.register("sk-secret-1")
    reporter = Reporter(None, quiet=True)
    if lines is not None:
        reporter.say = lines.append  # type: ignore[method-assign]
    return Runner(directory, reporter, redactor, stop or StopSignal())


def test_a_second_run_skips_everything(directory: RunDirectory) -> None:
    stages = [Fake("a"), Fake("b", inputs=("a",))]
    first = runner(directory).execute(stages)
    second = runner(directory).execute(stages)
    assert [record.status for record in first] == ["done", "done"]
    assert [record.status for record in second] == ["skipped", "skipped"]
    assert [stage.runs for stage in stages] == [1, 1]
    assert all(runner(directory).completed(stages))


def test_a_change_runs_again_what_it_affects_and_says_what_changed(directory: RunDirectory) -> None:
    runner(directory).execute([Fake("a", rate=1), Fake("b", inputs=("a",)), Fake("c")])
    lines: list[str] = []
    same_output = [Fake("a", rate=2), Fake("b", inputs=("a",)), Fake("c")]
    runner(directory, lines=lines).execute(same_output)
    assert [stage.runs for stage in same_output] == [1, 0, 0]
    assert any("rate changed" in line for line in lines)
    other_output = [Fake("a", "y", rate=3), Fake("b", inputs=("a",)), Fake("c")]
    runner(directory).execute(other_output)
    assert [stage.runs for stage in other_output] == [1, 1, 0]


def test_a_failure_keeps_progress_and_leaves_no_manifest(directory: RunDirectory) -> None:
    stage = Fake("a")
    stage.fails = True
    with pytest.raises(DataError):
        runner(directory).execute([stage])
    path = directory.stage_directory(1, "a")
    assert Manifest.read(path) is None
    stage.fails = False
    runner(directory).execute([stage])
    assert (path / "progress").read_text() == "11"


def test_the_manifest_tells_everything(directory: RunDirectory) -> None:
    record = runner(directory).execute([Fake("a")])[0]
    manifest = Manifest.read(record.directory)
    assert manifest == record.manifest
    assert manifest.rows == RowCounts(2, 1, {"bad": 1})
    assert (manifest.tokens, manifest.metrics) == ({"n": 3}, {"m": 1.0})
    assert manifest.verify(record.directory) == []
    rejected = json.loads((record.directory / "rejected.jsonl").read_text())
    assert rejected["id"] == "r1"
    assert "sk-secret-1" not in rejected["detail"]
    (record.directory / "out.txt").write_text("tampered")
    assert manifest.verify(record.directory) == ["out.txt"]


def test_missing_outputs_run_again(directory: RunDirectory) -> None:
    stage = Fake("a")
    record = runner(directory).execute([stage])[0]
    (record.directory / "out.txt").unlink()
    runner(directory).execute([stage])
    assert stage.runs == 2


def test_a_torn_manifest_counts_as_none(directory: RunDirectory) -> None:
    stage = Fake("a")
    record = runner(directory).execute([stage])[0]
    (record.directory / "manifest.json").write_text('{"stage": "a"')
    runner(directory).execute([stage])
    assert stage.runs == 2


def test_a_request_to_stop_ends_between_stages(directory: RunDirectory) -> None:
    stop = StopSignal()
    first, second = Fake("a"), Fake("b")
    with pytest.raises(Interrupted):
        runner(directory, stop).execute([first, second], on_stage=lambda records: stop.request())
    assert (first.runs, second.runs) == (1, 0)
    assert Manifest.read(directory.stage_directory(1, "a")) is not None


def test_preflight_gathers_all_issues(directory: RunDirectory) -> None:
    stages = [Fake("a"), Fake("b")]
    for stage in stages:
        stage.issues = [ConfigIssue("here", stage.name, "wrong")]
    with pytest.raises(ConfigError) as caught:
        runner(directory).preflight(stages)
    assert [issue.path for issue in caught.value.issues] == ["a", "b"]


def test_the_directory_is_locked(directory: RunDirectory) -> None:
    with directory.locked(), pytest.raises(RunDirectoryBusy), RunDirectory(directory.path).locked():
        pass
