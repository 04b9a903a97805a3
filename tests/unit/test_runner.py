"""The runner skips complete stages, reruns changed ones, and keeps the progress of failed ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from easydistill.data.manifest import Manifest, RowCounts
from easydistill.data.records import Rejection
from easydistill.engine.checks import needs_extra
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.runner import Runner
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigError, ConfigIssue, DataError, Interrupted, RunDirectoryBusy


class Fake:
    """A stage that writes `text`, and counts its runs."""

    offers: tuple[str, ...] = ()

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


def test_a_change_reruns_what_it_affects_and_is_named(directory: RunDirectory) -> None:
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


def test_the_manifest_records_everything(directory: RunDirectory) -> None:
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


def test_a_stage_whose_outputs_are_missing_runs_again(directory: RunDirectory) -> None:
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


def test_a_failure_keeps_the_stages_completed_before_it(directory: RunDirectory) -> None:
    first, second = Fake("a"), Fake("b", inputs=("a",))
    second.fails = True
    seen: list[list[str]] = []
    with pytest.raises(DataError):
        runner(directory).execute([first, second], on_stage=lambda records: seen.append([r.name for r in records]))
    assert seen == [["a"]]
    found = runner(directory).completed([first, second])
    assert [record is not None for record in found] == [True, False]
    second.fails = False
    records = runner(directory).execute([first, second])
    assert [record.status for record in records] == ["skipped", "done"]
    assert (first.runs, second.runs) == (1, 2)


def test_a_failed_attempt_makes_its_stage_incomplete(directory: RunDirectory) -> None:
    runner(directory).execute([Fake("a", rate=1)])
    broken = Fake("a", rate=2)
    broken.fails = True
    with pytest.raises(DataError):
        runner(directory).execute([broken])
    # Back to the first config: the files may come from the failed attempt.
    again = Fake("a", rate=1)
    assert runner(directory).completed([again]) == [None]
    runner(directory).execute([again])
    assert again.runs == 1


class Stopped(Fake):
    """A stage that is interrupted in the middle of its work."""

    def __init__(self, name: str, stop: StopSignal) -> None:
        super().__init__(name)
        self.stop = stop

    def run(self, context: StageContext) -> StageResult:
        result = super().run(context)
        self.stop.request()
        return result


def test_a_stage_that_was_interrupted_is_not_complete(directory: RunDirectory) -> None:
    stop = StopSignal()
    stage = Stopped("a", stop)
    with pytest.raises(Interrupted):
        runner(directory, stop).execute([stage])
    path = directory.stage_directory(1, "a")
    assert Manifest.read(path) is None
    assert (path / "out.txt").is_file(), "its files stay for the next attempt"
    records = runner(directory).execute([Fake("a")])
    assert records[0].status == "done"


def test_time_is_counted_over_all_attempts_with_the_same_config(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("easydistill.engine.runner.time.monotonic", lambda: float(next(clock)))
    stage = Fake("a", rate=1)
    stage.fails = True
    for _ in range(2):
        with pytest.raises(DataError):
            runner(directory).execute([stage])
    stage.fails = False
    assert runner(directory).execute([stage])[0].manifest.seconds == 30.0
    # Another configuration starts from zero.
    other = Fake("a", rate=2)
    other.fails = True
    with pytest.raises(DataError):
        runner(directory).execute([other])
    assert runner(directory).execute([Fake("a", rate=3)])[0].manifest.seconds == 10.0


def test_an_output_that_was_not_written_is_an_error(directory: RunDirectory) -> None:
    class Forgetful(Fake):
        def run(self, context: StageContext) -> StageResult:
            super().run(context)
            return StageResult(("out.txt", "other.txt"))

    with pytest.raises(DataError, match=r"a did not write other\.txt"):
        runner(directory).execute([Forgetful("a")])
    assert Manifest.read(directory.stage_directory(1, "a")) is None


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ({"rate": 1}, {"rate": 2}, "rate changed from 1 to 2"),
        ({"rate": 1}, {"rate": None}, "rate changed from 1 to null"),
        ({"rate": 1}, {}, "rate changed from 1 to its default"),
        ({}, {"rate": None}, "rate changed from its default to null"),
        ({"deep": {"a": 1, "b": 2}}, {"deep": {"a": 1, "b": 3}}, "deep.b changed from 2 to 3"),
        ({"deep": {"a": 1}}, {"deep": 5}, "deep changed"),
        ({"list": [1, 2]}, {"list": [2, 1]}, "list changed"),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, "a changed from 1 to 2, b changed from 1 to 2"),
        ({"a": 1}, {"a": "1"}, 'a changed from 1 to "1"'),
        ({"hash": "a" * 64}, {"hash": "b" * 64}, "hash changed"),
    ],
)
def test_what_changed_is_named(old: dict[str, Any], new: dict[str, Any], changed: str, directory: RunDirectory) -> None:
    runner(directory).execute([Fake("a", **old)])
    lines: list[str] = []
    stage = Fake("a", **new)
    again = runner(directory, lines=lines)
    (standing,) = again.standings([stage], again.completed([stage]))
    assert standing.words == f"runs: {changed}", "`plan` says what `run` says"
    again.execute([stage])
    assert stage.runs == 1
    assert lines[0] == f"[1/1] a again: {changed}"


def test_a_changed_input_is_named(directory: RunDirectory) -> None:
    runner(directory).execute([Fake("a"), Fake("b", inputs=("a",))])
    lines: list[str] = []
    runner(directory, lines=lines).execute([Fake("a", "other", rate=1), Fake("b", inputs=("a",))])
    assert lines[1] == "[2/2] b again: inputs.a changed"


def test_what_is_kept_and_what_runs_again_is_told_before_anything_runs(directory: RunDirectory) -> None:
    lines: list[str] = []
    chain = [Fake("a"), Fake("b", inputs=("a",)), Fake("c", inputs=("b",))]
    first = runner(directory, lines=lines)
    first.tell_standings(chain, first.completed(chain))
    assert not lines, "nothing to tell of a first run"
    first.execute(chain)
    changed = [Fake("a"), Fake("b", inputs=("a",), rate=1), Fake("c", inputs=("b",))]
    second = runner(directory, lines=lines)
    second.tell_standings(changed, second.completed(changed))
    told = "of an earlier run: a kept; b runs: rate changed from its default to 1; c runs: b runs again"
    assert lines[-1] == told
    assert not any(stage.runs for stage in changed)


def test_lost_files_are_named(directory: RunDirectory) -> None:
    record = runner(directory).execute([Fake("a")])[0]
    (record.directory / "out.txt").unlink()
    lines: list[str] = []
    runner(directory, lines=lines).execute([Fake("a")])
    assert lines == ["[1/1] a again: its files are gone"]


def test_a_stage_receives_only_the_artifacts_it_names(directory: RunDirectory) -> None:
    seen: dict[str, Any] = {}

    class Reader(Fake):
        def run(self, context: StageContext) -> StageResult:
            seen["inputs"] = sorted(context.inputs)
            seen["text"] = context.input_path("b", "out.txt").read_text()
            seen["fingerprint"] = context.fingerprint
            return super().run(context)

    records = runner(directory).execute([Fake("a", "A"), Fake("b", "B"), Reader("c", inputs=("b",))])
    assert seen["inputs"] == ["b"]
    assert seen["text"] == "B"
    assert seen["fingerprint"] == records[2].manifest.fingerprint


def test_no_stage_that_reads_an_incomplete_one_is_complete(directory: RunDirectory) -> None:
    stages = [Fake("a"), Fake("b", inputs=("a",)), Fake("c", inputs=("b",))]
    runner(directory).execute(stages)
    (directory.stage_directory(1, "a") / "manifest.json").unlink()
    assert runner(directory).completed(stages) == [None, None, None]
    # Its output is the same again, so nothing else has to run.
    runner(directory).execute(stages)
    assert [stage.runs for stage in stages] == [2, 1, 1]


def test_lone_surrogates_in_a_rejection_can_be_written(directory: RunDirectory) -> None:
    class Odd(Fake):
        def run(self, context: StageContext) -> StageResult:
            super().run(context)
            return StageResult(("out.txt",), rejected=(Rejection("r", "a", "bad", "\ud800", 1, {"\ud800": "\udfff"}),))

    record = runner(directory).execute([Odd("a")])[0]
    assert json.loads((record.directory / "rejected.jsonl").read_text())["detail"] == "?"


def test_packages_that_several_stages_lack_are_one_command(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers", "rensa"):
        monkeypatch.setitem(sys.modules, name, None)
    stages = [Fake("a"), Fake("b"), Fake("c")]
    stages[0].issues = [ConfigIssue("here", "x", "wrong"), *needs_extra("train", "torch", "transformers")]
    # As a pipeline tells of its jobs' stages.
    stages[1].issues = [replace(issue, path="jobs.b") for issue in needs_extra("synth", "rensa", "json")]
    stages[2].issues = needs_extra("train", "torch")
    with pytest.raises(ConfigError) as caught:
        runner(directory).preflight(stages)
    assert str(caught.value) == (
        "this machine: this job needs packages that are not installed: torch, transformers, rensa\n"
        "    → pip install 'easydistill-toolkit[train,synth]'\n"
        "here: x: wrong"
    )
