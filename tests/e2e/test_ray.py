"""Actors of a Ray cluster of this machine: the answers of one process, whoever is killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import assert_all_gone
from tests.e2e.test_pool import SETTINGS, Killer, config, labels, pooled_job, wait_for_answers
from tests.support.jobs import run, start, write_config
from tests.support.pool import ACTOR, answers, assert_once, below, context_in, prompts, workers_of

from easydistill.config.inference import RayInferenceConfig
from easydistill.errors import MissingExtra, TeacherError
from easydistill.teachers import plan_teacher

pytest.importorskip("ray")
OF_RAY: dict[str, Any] = {"backend": "ray", "engine": "transformers", "num_actors": 2}


def ray_config(**more: Any) -> RayInferenceConfig:
    return RayInferenceConfig(**OF_RAY | SETTINGS | more)


def test_two_actors_answer_as_one_process_does_though_one_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    asked = prompts(40)
    alone, in_ray = config(), ray_config()
    expected = answers(tmp_path / "alone", plan_teacher(alone, str(tiny_model)), alone, asked)
    before = set(below())
    with Killer(ACTOR, random.Random(3), 0.5, 1) as killer:
        assert answers(tmp_path / "ray", plan_teacher(in_ray, str(tiny_model)), in_ray, asked) == expected
    assert killer.kills == 1
    assert_all_gone([child for child in below() if child not in before])


def test_a_cluster_that_is_not_there_is_told(tiny_model: Path, tmp_path: Path) -> None:
    in_ray = ray_config(address="127.0.0.1:9")
    with pytest.raises(TeacherError, match=r"there is no Ray cluster at 127\.0\.0\.1:9.*(?s:.*)`ray start`"):
        answers(tmp_path, plan_teacher(in_ray, str(tiny_model)), in_ray, prompts(2))


def test_without_ray_the_extra_is_named(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    in_ray = ray_config()
    with pytest.raises(MissingExtra, match=r"easydistill-toolkit\[ray\]"):
        answers(tmp_path, plan_teacher(in_ray, str(tiny_model)), in_ray, prompts(2))


@pytest.mark.slow
def test_two_teachers_share_a_cluster_until_both_are_done(tiny_model: Path, tmp_path: Path) -> None:
    first, second = ray_config(num_actors=1), ray_config(num_actors=1, num_cpus=3, seed=3)
    plans = [plan_teacher(section, str(tiny_model)) for section in (first, second)]
    teachers = [plan.make(context_in(tmp_path / str(number))) for number, plan in enumerate(plans)]
    before = set(below())
    try:
        found = answers(tmp_path / "0", plans[0], first, prompts(4), teachers[0])
        other = answers(tmp_path / "1", plans[1], second, prompts(4), teachers[1])
        assert found.keys() == other.keys() and found != other
        teachers[0].close()
        assert len(answers(tmp_path / "2", plans[1], second, prompts(6), teachers[1])) == 6
        elsewhere = ray_config(address="auto")
        with pytest.raises(TeacherError, match=r"use one inference\.address"):
            answers(tmp_path / "3", plan_teacher(elsewhere, str(tiny_model)), elsewhere, prompts(2))
    finally:
        teachers[1].close()
    assert_all_gone([child for child in below() if child not in before])


@pytest.mark.slow
def test_actors_killed_at_random_moments(tiny_model: Path, tmp_path: Path) -> None:
    asked = prompts(120)
    alone, in_ray = config(), ray_config()
    expected = answers(tmp_path / "alone", plan_teacher(alone, str(tiny_model)), alone, asked)
    plan = plan_teacher(in_ray, str(tiny_model))
    generator = random.Random(0)
    kills = trial = 0
    while kills < 10:
        # Few in one trial: the same batch may not be hit twice by chance.
        with Killer(ACTOR, generator, 8, 2) as killer:
            assert answers(tmp_path / str(trial), plan, in_ray, asked) == expected
        kills += killer.kills
        trial += 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_rows_over_two_actors_one_killed_twice(tiny_model: Path, tmp_path: Path) -> None:
    rows, short = 2000, {"max_new_tokens": 8, "batch_size": 8}
    whole = tmp_path / "whole"
    whole.mkdir()
    code, out = run(write_config(whole, pooled_job(whole, tiny_model, rows, **short)))
    assert code == 0, out
    torn = tmp_path / "torn"
    torn.mkdir()
    process = start(write_config(torn, pooled_job(torn, tiny_model, rows, **OF_RAY, **short)))
    killed: list[int] = []
    for lines in (20, 60):
        wait_for_answers(process, torn, lines)
        actors = wait_for_actors(process, 2 if not killed else 1, killed)
        # Whoever has come in the place of the first, if it is there already.
        victim = next((actor for actor in actors if killed and actor > max(killed)), actors[0])
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    assert out.count("going on without it") == 2
    assert labels(torn) == labels(whole)
    assert_once(torn / "run/stages/1-label/journal.jsonl", rows)


def wait_for_actors(process: Any, count: int, but: list[int]) -> list[int]:
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        actors = [actor for actor in workers_of(ACTOR, process.pid) if actor not in but]
        if len(actors) >= count:
            return actors
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=30))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_takes_its_cluster_along_and_is_resumed(
    number: signal.Signals, tiny_model: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path, pooled_job(tmp_path, tiny_model, 200, **OF_RAY))
    process = start(path)
    wait_for_answers(process, tmp_path, 3)
    started = below(process.pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert_all_gone(started)
    # Without Ray: the answers are the same teacher's.
    code, out = run(write_config(tmp_path, pooled_job(tmp_path, tiny_model, 200)))
    assert code == 0, out
    assert "rows already done" in out
    assert_once(tmp_path / "run/stages/1-label/journal.jsonl", 200)
