"""Sinks of third parties, in processes of their own: what they get, and what their failures do to a run: nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.tracked import assert_each_once, steps_in, steps_of_mlflow

from easydistill import job_run
from easydistill.api import load
from easydistill.config.base import Section
from easydistill.config.sink import SINKS
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.secrets import Redactor
from easydistill.errors import ConfigError
from easydistill.tracking import tracker as tracking
from easydistill.tracking.tracker import Tracker, check_sinks, flat

SECRET = "sk-never-print-this"
SINK = '''
import json, os, time
from easydistill.config.base import Secret
from easydistill.contracts.sink import SinkConfig

class Config(SinkConfig):
    """A file."""
    fails: str = ""
    server: bool = False
    api_key: Secret | None = None

    @property
    def rewritten(self):
        return not self.server

class Diary:
    def __init__(self, config, context):
        self.config, self.file = config, context.directory / f"{context.id}.jsonl"
        self.fail("init")
        self.tell(settings=dict(context.settings))

    def fail(self, where):
        if self.config.fails == f"{where} raises":
            raise RuntimeError(f"no place for {self.config.api_key.get_secret_value()}")
        if self.config.fails == f"{where} hangs":
            time.sleep(1000)
        if self.config.fails == f"{where} dies":
            os._exit(9)

    def tell(self, **values):
        with self.file.open("a") as lines:
            lines.write(json.dumps(values) + "\\n")

    def log(self, figures):
        print("libraries talk")
        self.fail("log")
        for item in figures:
            self.tell(group=item.group, step=item.step, values=dict(item.values))

    def close(self, status):
        self.fail("close")
        self.tell(status=status)

def make(config, context):
    return Diary(config, context)
'''


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Section]:
    """A package with a sink, installed for this process and those that it starts."""
    package = tmp_path / "package"
    (package / "diaries-1.0.dist-info").mkdir(parents=True)
    (package / "diary_sink.py").write_text(SINK)
    (package / "diaries-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: diaries\nVersion: 1.0\n")
    (package / "diaries-1.0.dist-info/entry_points.txt").write_text("[easydistill.sinks]\ndiary = diary_sink\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(tracking, "SINKS", type(SINKS)(SINKS.kind, SINKS.package, SINKS.contract))
    config: type[Section] = tracking.SINKS.module("diary").Config
    return config


class Run:
    """A run that is tracked, without one that takes its time."""

    def __init__(self, folder: Path, sink: Any = None, *, sinks: dict[str, Any] | None = None, **settings: Any) -> None:
        self.folder = folder / "run"
        (self.folder / "stages/3-train").mkdir(parents=True, exist_ok=True)
        self.said: list[str] = []
        chosen = {"diary": sink} if sinks is None else sinks
        job: Any = SimpleNamespace(track=SimpleNamespace(chosen=lambda: chosen), job_type="black_box_kd_api")
        redactor = Redactor()
        redactor.register(SECRET)
        self.tracker = Tracker(RunDirectory(self.folder), job, "kd", settings, redactor, self.said.append)

    def log(self, *steps: int) -> None:
        with (self.folder / "metrics.jsonl").open("a") as lines:
            for step in steps:
                lines.write(json.dumps({"time": time.time(), "stage": "train", "step": step, "loss": 1 / step}) + "\n")

    def complete(self, step: int | None = None) -> None:
        """A checkpoint, or the whole stage."""
        stage = self.folder / "stages/3-train"
        if step is None:
            (stage / "manifest.json").write_text('{"metrics": {"final_loss": 0.5}}')
            return
        (stage / f"checkpoints/0/checkpoint-{step}").mkdir(parents=True)
        (stage / f"checkpoints/0/checkpoint-{step}/whole.json").write_text("{}")

    def told(self) -> dict[str, list[dict[str, Any]]]:
        """What each record of the diary holds."""
        files = sorted((self.folder / "tracking/diary").glob("*.jsonl"), key=lambda file: file.stem)
        return {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}

    def steps(self) -> list[list[int]]:
        return [[line["step"] for line in told if line.get("group") == "train"] for told in self.told().values()]


def test_what_a_sink_gets(diary: Any, tmp_path: Path) -> None:
    run = Run(tmp_path, diary(), training={"learning_rate": 0.1, "lora": None}, track={}, targets=[1])
    run.tracker.start()
    run.log(1, 2, 3)
    run.complete()
    run.tracker.close("done")
    (told,) = run.told().values()
    assert told[0] == {"settings": {"training.learning_rate": 0.1, "targets": "[1]"}}
    assert [(line["group"], line["step"]) for line in told[1:-1]] == [
        *(("train", step) for step in (1, 2, 3)),
        ("summary/train", 0),
    ]
    assert told[-1] == {"status": "done"}
    assert run.said == []
    assert run.tracker.is_complete()
    assert not Run(tmp_path, diary(server=True)).tracker.is_complete()


@pytest.mark.parametrize("server", [False, True])
def test_each_step_stands_once_after_a_failed_start(diary: Any, server: bool, tmp_path: Path) -> None:
    """The first start ends with steps after its checkpoint; the second one logs them again, under the same id."""
    for steps, at in ((range(1, 8), 5), (range(6, 10), None)):
        run = Run(tmp_path, diary(server=server))
        run.tracker.start()
        run.log(*steps)
        run.complete(at)
        run.tracker.close("failed" if at else "done")
        assert run.said == []
    assert run.steps() == [list(range(1, 10))]


def test_a_training_that_begins_anew_has_a_new_record(diary: Any, tmp_path: Path) -> None:
    """The old one is shown at first, because the stage was complete when the run was started again."""
    run = Run(tmp_path, diary())
    run.log(1, 2, 3)
    run.complete()
    run.tracker.start()
    wait_for(lambda: run.steps() == [[1, 2, 3]])
    (run.folder / "stages/3-train/manifest.json").unlink()
    run.log(1, 2)
    run.complete()
    run.tracker.close("done")
    assert run.said == []
    assert run.steps() == [[1, 2]]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_server_gets_a_new_record_if_training_begins_anew(diary: Any, tmp_path: Path) -> None:
    for count in (3, 2):
        run = Run(tmp_path, diary(server=True))
        (run.folder / "stages/3-train/manifest.json").unlink(missing_ok=True)
        run.tracker.start()
        run.log(*range(1, count + 1))
        run.complete()
        run.tracker.close("done")
    assert run.steps() == [[1, 2, 3], [1, 2]]
    one, two = run.told()
    assert two == f"{one}-2"


@pytest.mark.parametrize(
    "fails",
    [
        "init raises",
        "log hangs",
        "close dies",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("init hangs", "init dies", "log raises", "log dies", "close raises", "close hangs")
        ),
    ],
)
def test_a_failing_sink_warns_once(diary: Any, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 3.0)
    run = Run(tmp_path, diary(fails=fails, api_key=SECRET))
    started = time.monotonic()
    run.tracker.start()
    run.log(1, 2)
    assert time.monotonic() - started < 1, "the run waited for its sink"
    run.complete()
    run.tracker.close("done")
    assert time.monotonic() - started < 30
    (warning,) = run.said
    assert warning.startswith("warning: diary tracks this run no longer: ")
    wanted = {"raises": "no place for [redacted]", "hangs": "no sign of life", "dies": "its process has ended"}
    assert wanted[fails.split()[1]] in warning
    assert SECRET not in warning
    assert not run.tracker.is_complete()
    # The next start makes up for it.
    again = Run(tmp_path, diary())
    again.tracker.start()
    again.tracker.close("done")
    assert again.said == []
    assert again.steps() == [[1, 2]]


def test_what_a_failing_server_missed_is_sent_later(diary: Any, tmp_path: Path) -> None:
    for fails in ("log raises", ""):
        run = Run(tmp_path, diary(fails=fails, server=True, api_key=SECRET))
        run.tracker.start()
        if fails:
            run.log(1, 2, 3)
            run.complete()
        run.tracker.close("done")
    assert run.steps() == [[1, 2, 3]]


def test_secrets_go_to_the_sink_alone(diary: Any, tmp_path: Path) -> None:
    run = Run(tmp_path, diary(api_key=SECRET))
    run.tracker.start()
    run.log(1)
    run.tracker.close("done")
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET in path.read_text()]


def test_a_library_that_is_absent_is_told_before_the_run(diary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.SINKS.module("diary"), "NEEDS", ("no_such_library",))
    job: Any = SimpleNamespace(track=SimpleNamespace(chosen=lambda: {"diary": diary()}))
    with pytest.raises(ConfigError, match=r"track\.diary: no_such_library is not installed"):
        check_sinks(job)


def test_settings_are_flat() -> None:
    values = {"a": {"b": 1, "c": {"d": True}}, "list": ["x"], "none": None, "text": "é"}
    assert flat(values) == {"a.b": 1, "a.c.d": True, "list": '["x"]', "text": "é"}


def test_tensorboard_after_a_failed_start(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for steps, at in ((range(1, 8), 5), (range(6, 10), None)):
        run = Run(tmp_path, sinks={"tensorboard": SINKS.module("tensorboard").Config()})
        run.tracker.start()
        run.log(*steps)
        run.complete(at)
        run.tracker.close("failed" if at else "done")
        assert run.said == []
    assert_each_once(steps_in(run.folder, "tensorboard"), "train/loss", list(range(1, 10)))


@pytest.mark.slow
def test_mlflow_elsewhere_gets_what_is_final(tmp_path: Path) -> None:
    """A server's record cannot be written anew; a database stands for one here."""
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'server.db'}"
    for steps, at in ((range(1, 8), 5), (range(6, 10), None)):
        run = Run(tmp_path, sinks={"mlflow": SINKS.module("mlflow").Config(tracking_uri=uri)})
        run.tracker.start()
        run.log(*steps)
        run.complete(at)
        run.tracker.close("failed" if at else "done")
        assert run.said == []
        assert steps_of_mlflow(uri)["train/loss"] == list(range(1, 6 if at else 10))


def test_settings_have_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the keys, and no password inside a URL."""
    seen: dict[str, Any] = {}

    class Recorded(Tracker):
        def __init__(self, run: Any, job: Any, name: str, settings: Any, *others: Any) -> None:
            seen.update(flat(settings))
            super().__init__(run, job, name, settings, *others)

    monkeypatch.setattr(job_run, "Tracker", Recorded)
    config = {
        "job_type": "black_box_kd_api",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": "rows.json"},
        "inference": {"base_url": "http://me:hidden-password@localhost/v1", "api_key": SECRET, "system_prompt": SECRET},
        "models": {"student": "student"},
        "track": {"wandb": {"api_key": SECRET}},
    }
    job_run.JobRun(load(config), quiet=True)
    assert seen["inference.base_url"] == "http://me:[redacted]@localhost/v1"
    assert SECRET not in json.dumps(seen)
