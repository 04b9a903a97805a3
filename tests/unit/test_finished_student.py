"""A student that was trained with other settings is kept before it is replaced, at whatever moment the run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_runner import Fake, runner

from easydistill.data.files import show_directory
from easydistill.engine.finished import replacing
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.stage import StageContext, StageResult
from easydistill.errors import DataError


class Training(Fake):
    """Writes a student, as training stages do."""

    offers = ("student",)

    def run(self, context: StageContext) -> StageResult:
        result = super().run(context)
        model = context.directory / "model"
        model.mkdir(exist_ok=True)
        # As `save_student`: new files, not old ones written over.
        (model / "weights").unlink(missing_ok=True)
        (model / "weights").write_text(json.dumps(self.config))
        show_directory(model, context.run_directory / "student")
        return result


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def train(run: RunDirectory, *, fails: bool = False, label: str = "x", **config: Any) -> list[str]:
    """One run, as `JobRun` does it; returns what was said."""
    stages = [Fake("label", label), Training("train", inputs=("label",), **config), Fake("evaluate", inputs=("train",))]
    stages[2 if fails else 0].fails = fails
    lines: list[str] = []
    runs = runner(run, lines=lines)
    runs.completed(stages)
    run.path.mkdir(exist_ok=True)
    (run.path / "config.resolved.json").write_text(json.dumps(config))
    run.summary_path.write_text(json.dumps({"status": "running", **config}))
    try:
        runs.execute(stages)
        run.summary_path.write_text(json.dumps({"status": "done", **config}))
    except DataError:
        run.summary_path.write_text(json.dumps({"status": "failed", **config}))
    return lines


def kept(run: RunDirectory) -> dict[str, Any]:
    """Number → rates in (weights, settings, summary)."""
    found = {}
    for path in sorted((run.path / "previous").glob("[0-9]*")):
        files = ("student/weights", "config.resolved.json", "summary.json")
        found[path.name] = [json.loads((path / name).read_text())["rate"] for name in files]
    return found


def test_each_student_is_kept_with_its_own_settings(run: RunDirectory) -> None:
    assert not any("previous" in line for line in train(run, rate=1))
    assert not (run.path / "previous").exists()
    told = train(run, rate=2)
    assert any("is kept, with its report, in" in line and "--replace" in line for line in told)
    train(run, rate=3)
    assert kept(run) == {"1": [1, 1, 1], "2": [2, 2, 2]}
    assert json.loads((run.student / "weights").read_text()) == {"rate": 3}
    assert (run.path / "previous/2/stages/2-train/manifest.json").is_file()


def test_the_same_settings_or_those_of_later_stages_keep_nothing(run: RunDirectory) -> None:
    train(run, rate=1)
    train(run, rate=1)
    (run.path / "stages/3-evaluate/manifest.json").unlink()
    train(run, rate=1)
    (run.path / "stages/2-train/out.txt").unlink()
    train(run, rate=1)
    assert not (run.path / "previous").exists()


def test_other_labels_count_as_other_settings(run: RunDirectory) -> None:
    train(run, rate=1)
    (run.path / "stages/1-label/manifest.json").unlink()
    assert any("trained with other rows" in line for line in train(run, label="y", rate=1))
    assert kept(run) == {"1": [1, 1, 1]}


def test_who_wants_it_dropped_has_it_dropped(run: RunDirectory) -> None:
    train(run, rate=1)
    with replacing(True):
        train(run, rate=2)
    assert not (run.path / "previous").exists()
    assert json.loads((run.student / "weights").read_text()) == {"rate": 2}


def test_a_run_that_ends_between_does_not_mix_settings(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    train(run, rate=1)

    def killed(*args: Any) -> None:
        raise DataError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("easydistill.engine.runner.Runner._keep_student", killed)
        train(run, rate=2)
    assert json.loads((run.path / "summary.json").read_text()) == {"status": "failed", "rate": 2}
    assert kept(run) == {}
    train(run, rate=3)
    assert kept(run) == {"1": [1, 1, 1]}
    # Back to what was there: nothing is trained, and nothing is left behind.
    train(run, rate=3)
    assert kept(run) == {"1": [1, 1, 1]}


@pytest.mark.parametrize("next_rate", [1, 2])
def test_a_kill_after_the_weights_are_moved_loses_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, next_rate: int
) -> None:
    train(run, rate=1)

    def killed(*args: Any) -> None:
        raise DataError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("easydistill.engine.finished.FinishedStudent._number", killed)
        train(run, rate=2)
    assert kept(run) == {}
    train(run, rate=next_rate)
    assert kept(run) == {"1": [1, 1, 1]}
    assert json.loads((run.student / "weights").read_text()) == {"rate": next_rate}


def test_a_student_whose_evaluation_failed_is_kept_too(run: RunDirectory) -> None:
    train(run, fails=True, rate=1)
    train(run, rate=2)
    assert kept(run) == {"1": [1, 1, 1]}


def test_without_a_student_there_is_nothing_to_show_while_training(run: RunDirectory) -> None:
    train(run, rate=1)

    class Failing(Training):
        def run(self, context: StageContext) -> StageResult:
            assert not (context.run_directory / "student").exists(), "it would be taken for the new one"
            raise DataError("broken")

    stages = [Fake("label"), Failing("train", inputs=("label",), rate=2)]
    with pytest.raises(DataError):
        runner(run).execute(stages)
    assert (run.path / "previous/1/student/weights").is_file()


def test_a_pipeline_whose_jobs_train_in_their_own_directories_copies_nothing(run: RunDirectory) -> None:
    run.student.mkdir(parents=True)
    run.summary_path.write_text("{}")
    job = Fake("job")
    job.fails = True
    runs = runner(run)
    runs.completed([job])
    with pytest.raises(DataError):
        runs.execute([job])
    assert not (run.path / "previous").exists()
