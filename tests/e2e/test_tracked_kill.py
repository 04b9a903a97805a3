"""A run that is killed and resumed, and one that is finished, in every sink that is installed here: each step once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import local_job, run, start, write_config
from tests.support.tracked import assert_each_once, installed, steps_in

pytestmark = pytest.mark.slow
SINKS = ("tensorboard", "trackio", "wandb", "mlflow")
STEPS = list(range(1, 25))


def job(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    made = local_job(folder, model, model, [f"Name {count} rivers." for count in range(2, 34)])
    made["training"] |= {"max_steps": len(STEPS), "save_steps": 5, "gradient_accumulation_steps": 1}
    return made | more


def logged(folder: Path) -> int:
    file = folder / "run/metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


@pytest.mark.parametrize("kill_at", [13, 3])
def test_killed_and_resumed(kill_at: int, tiny_model: Path, tmp_path: Path) -> None:
    """At step 3 there is no checkpoint yet; at 13 the steps from 11 on are undone."""
    sinks = installed(*SINKS)
    if not sinks:
        pytest.skip("no sink's library is here")
    config = write_config(tmp_path, job(tmp_path, tiny_model, track=sinks))
    process = start(config)
    while logged(tmp_path) < kill_at:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    code, out = run(config)
    assert code == 0 and "warning" not in out, out
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(steps) > len(STEPS), "no step was logged twice: the test proves nothing"
    for sink in sinks:
        found = steps_in(tmp_path / "run", sink)
        assert_each_once(found, "train/loss", STEPS)
        assert found["labelling/rows_per_second"] == [32]
        assert found["summary/evaluate/after/cross_entropy"] == [0]


def test_trained_again_with_another_setting(tiny_model: Path, tmp_path: Path) -> None:
    """The finished training is shown at first, and gives way to the new one."""
    sinks = installed(*SINKS)
    if not sinks:
        pytest.skip("no sink's library is here")
    for rate in (1e-3, 2e-3):
        made = job(tmp_path, tiny_model, track=sinks)
        made["training"]["learning_rate"] = rate
        code, out = run(write_config(tmp_path, made))
        assert code == 0 and "warning" not in out, out
    for sink in sinks:
        assert_each_once(steps_in(tmp_path / "run", sink), "train/loss", STEPS)


def test_named_when_the_run_is_finished(tiny_model: Path, tmp_path: Path) -> None:
    sinks = installed(*SINKS)
    if not sinks:
        pytest.skip("no sink's library is here")
    bare = write_config(tmp_path, job(tmp_path, tiny_model))
    assert run(bare)[0] == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/stages").rglob("*") if path.is_file()}
    for _ in range(2):
        code, out = run(write_config(tmp_path, job(tmp_path, tiny_model, track=sinks)))
        assert code == 0 and "everything is already done" in out and "warning" not in out, out
        for sink in sinks:
            assert_each_once(steps_in(tmp_path / "run", sink), "train/loss", STEPS)
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "run/stages").rglob("*") if path.is_file()}
