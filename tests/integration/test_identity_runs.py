"""A run goes on under a later version: sections with more options, and metrics that did not exist when it ran."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.jobs import api_job, run_here, write_config
from tests.support.scripted_server import ScriptedServer
from tests.support.sections import with_fields_inside

import easydistill
from easydistill.errors import EXIT_INTERRUPTED
from easydistill.evaluation.metrics import METRICS
from easydistill.jobs import black_box_kd_api

PROMPTS = [f"Write a line about the number {number}." for number in range(24)]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    made.say = lambda text, number: f"Here is a line: {text}"
    yield made
    made.close()


@pytest.fixture
def config(server: ScriptedServer, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    job = api_job(tmp_path, server.url, tiny_model, PROMPTS, model="m", max_concurrency=4)
    return job | {"training": job["training"] | {"save_steps": 1}}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives every section of the job one more optional field, as a later version of this package might."""

    def arrive() -> None:
        monkeypatch.setattr(black_box_kd_api, "Job", with_fields_inside(black_box_kd_api.Job, "later_option"))

    return arrive


def statuses(folder: Path) -> dict[str, str]:
    stages = json.loads((folder / "run/summary.json").read_text())["stages"]
    return {name: stage["status"] for name, stage in stages.items()}


def logged_steps(folder: Path) -> list[int]:
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["step"] for entry in entries if entry.get("stage") == "train" and "loss" in entry]


DONE, SKIPPED = "done", "skipped"


def test_a_finished_run_stays_finished_and_its_answers_stay_paid(
    config: dict[str, Any], server: ScriptedServer, tmp_path: Path, later: Any
) -> None:
    assert easydistill.run(config, quiet=True).fresh
    asked = len(server.asked)
    assert asked == len(PROMPTS)
    later()
    assert not easydistill.run(config, quiet=True).fresh, "everything is already done"
    # Without its manifest, the stage takes its answers from the journal.
    (tmp_path / "run/stages/1-label/manifest.json").unlink()
    assert easydistill.run(config, quiet=True).fresh
    assert statuses(tmp_path) == {"label": DONE, "train": SKIPPED, "evaluate": SKIPPED}
    assert len(server.asked) == asked
    # Once the option is set, what it is an option of runs again, and nothing else.
    easydistill.run(config | {"evaluation": config["evaluation"] | {"later_option": 1}}, quiet=True)
    assert statuses(tmp_path) == {"label": SKIPPED, "train": SKIPPED, "evaluate": DONE}
    easydistill.run(config | {"inference": config["inference"] | {"later_option": 1}}, quiet=True)
    assert len(server.asked) == 2 * asked


def test_checkpoints_are_found(config: dict[str, Any], tmp_path: Path, later: Any) -> None:
    path = write_config(tmp_path, config)

    def stop_after_a_checkpoint() -> None:
        while not list(tmp_path.glob("run/stages/2-train/checkpoints/*/checkpoint-2/whole.json")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop_after_a_checkpoint, daemon=True)
    thread.start()
    code, out = run_here(path)
    thread.join(timeout=60)
    assert code == EXIT_INTERRUPTED, out
    before = logged_steps(tmp_path)
    later()
    code, out = run_here(path)
    assert code == 0, out
    steps = logged_steps(tmp_path)
    assert steps[: len(before)] == before
    assert steps[len(before)] > 2, "it went on from the checkpoint"
    assert steps[-1] == 4


class RelativeLength:
    """How many characters an answer has for each of the reference's."""

    kind = "answers"
    needs_teacher = False

    def score(self, answer: str, reference: str) -> float:
        return len(answer) / max(1, len(reference))


def test_a_new_metric_is_measured_and_nothing_else_runs_again(
    config: dict[str, Any], server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    easydistill.run(config, quiet=True)
    first = json.loads((tmp_path / "run/summary.json").read_text())["metrics"]
    names = METRICS.names()
    point = EntryPoint("relative_length", "third.party", "easydistill.metrics")
    monkeypatch.setitem(METRICS.__dict__, "_external", {point.name: point})
    module = ModuleType("third.party")
    module.Metric = RelativeLength  # type: ignore[attr-defined]
    monkeypatch.setattr(EntryPoint, "load", lambda self: module)
    assert METRICS.names() == (*names, "relative_length")
    assert easydistill.run(config, quiet=True).fresh
    assert statuses(tmp_path) == {"label": SKIPPED, "train": SKIPPED, "evaluate": DONE}
    assert not easydistill.run(config, quiet=True).fresh
    found = json.loads((tmp_path / "run/summary.json").read_text())["metrics"]
    for when in ("before", "after"):
        assert found[when].pop("relative_length") >= 0, "measured on both sides"
        assert found[when] == pytest.approx(first[when])
    assert len(server.asked) == len(PROMPTS)
