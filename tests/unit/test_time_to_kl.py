"""The benchmark of time to a KL divergence: its clock, and what it says of arms that do not get there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from benchmarks.time_to_kl.run import ratios
from benchmarks.time_to_kl.work import Course
from tests.support.jobs import ROOT


def test_the_clock_halts_while_kl_is_measured() -> None:
    kls = iter([3.0, 1.7])

    def slowly(model: Any) -> float:
        time.sleep(0.05)
        return next(kls)

    course = Course(slowly, target=1.8, most_seconds=60, every=2)
    course.go()
    assert [course.after_step(step, 8, None) for step in (1, 2, 3, 4)] == [False, False, False, True]
    assert course.reached is not None and course.reached["step"] == 4
    assert course.seconds < 0.05
    assert [point["kl"] for point in course.points] == [3.0, 1.7]


def test_a_training_that_takes_too_long_is_broken_off_and_the_last_step_is_measured() -> None:
    course = Course(lambda model: 5.0, target=1.8, most_seconds=0, every=100)
    course.go()
    assert course.after_step(1, 3, None) and course.reached is None and not course.points
    course.most_seconds = 60
    assert not course.after_step(3, 3, None)
    assert [point["step"] for point in course.points] == [3]


def test_an_arm_that_never_gets_there_has_no_time() -> None:
    def training(reached: float | None, seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "reached": None if reached is None else {"seconds": reached, "step": 1}}

    runs = {
        "ours": [training(30.0, 33.0)],
        "trl_sft": [training(None, 100.0), training(90.0, 95.0)],
        "trl_gkd": [training(None, 120.0), training(None, 60.0)],
    }
    found = ratios(runs)
    assert found["ours_over_trl_sft"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["ours_over_trl_gkd"] == "below 0.2500: not reached by 120.0 s"
    assert ratios({**runs, "ours": [training(None, 33.0)]}) == {"ours": "not reached"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_arm_gets_to_an_easy_target() -> None:
    command = [sys.executable, "-m", "benchmarks.time_to_kl.run", "--tiny", "--json", "--epochs", "1", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])["seeds"]["0"]
    for side, trainings in found["runs"].items():
        assert trainings[-1]["reached"], side
    own = found["runs"]["ours"][-1]
    assert own["kl_of_evaluation"] == pytest.approx(own["course"][-1]["kl"], rel=1e-3)
    assert 0 < own["seconds_of_scoring"] < own["seconds"]
