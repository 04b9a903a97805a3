"""Workers on this machine: the answers of one process, whoever is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import assert_all_gone
from tests.support.jobs import run, start, write_config, write_prompts
from tests.support.pool import PROCESS, answers, assert_once, below, context_in, prompts, workers_of

from easydistill.config.inference import TransformersInferenceConfig
from easydistill.data.files import hash_file
from easydistill.teachers import plan_teacher

SETTINGS: dict[str, Any] = {"max_new_tokens": 48, "temperature": 0.9, "batch_size": 4, "dtype": "float32"}


def config(**more: Any) -> TransformersInferenceConfig:
    return TransformersInferenceConfig(backend="transformers", **SETTINGS, **more)


class Killer:
    """Kills workers of this process at random moments, while it is entered.

    Args:
        kind: what is in their command lines.
        longest: seconds between two kills, at most.
        most: kills.
    """

    def __init__(self, kind: str, generator: random.Random, longest: float, most: int) -> None:
        self._kind, self._generator, self._longest, self._most = kind, generator, longest, most
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)
        self.kills = 0

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        while self.kills < self._most and not self._over.wait(self._generator.uniform(0, self._longest)):
            victims = workers_of(self._kind)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._generator.choice(victims), signal.SIGKILL)
                    self.kills += 1


def test_two_workers_answer_as_one_process_does_though_one_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    asked = prompts(40)
    alone, in_two = config(), config(workers=2)
    expected = answers(tmp_path / "alone", plan_teacher(alone, str(tiny_model)), alone, asked)
    plan = plan_teacher(in_two, str(tiny_model))
    teacher: Any = plan.make(context_in(tmp_path / "two"))
    ask = teacher._crew.send
    sent: list[int] = []

    def send_and_kill(worker: int, message: Any) -> None:
        ask(worker, message)
        sent.append(worker)
        if len(sent) == 5:
            teacher._crew._processes[worker].process.kill()

    teacher._crew.send = send_and_kill
    try:
        assert answers(tmp_path / "two", plan, in_two, asked, teacher) == expected
        started = workers_of(PROCESS)
        assert len(started) == 2
    finally:
        teacher.close()
    assert_all_gone(started)
    assert set(sent) == {0, 1}
    assert {path.name for path in (tmp_path / "two" / "workers").iterdir()} == {"worker-1.log", "worker-2.log"}


@pytest.mark.slow
def test_workers_killed_at_random_moments(tiny_model: Path, tmp_path: Path) -> None:
    asked = prompts(120)
    alone, in_two = config(), config(workers=2)
    expected = answers(tmp_path / "alone", plan_teacher(alone, str(tiny_model)), alone, asked)
    plan = plan_teacher(in_two, str(tiny_model))
    generator = random.Random(0)
    kills = trial = 0
    while kills < 10:
        # Few in one trial: the same batch may not be hit twice by chance.
        with Killer(PROCESS, generator, 8, 2) as killer:
            assert answers(tmp_path / str(trial), plan, in_two, asked) == expected
        kills += killer.kills
        trial += 1
    assert workers_of(PROCESS) == []


def pooled_job(folder: Path, tiny_model: Path, rows: int, **inference: Any) -> dict[str, Any]:
    """A job that labels."""
    return {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(write_prompts(folder, prompts(rows)))},
        "inference": {"backend": "transformers", **SETTINGS, **inference},
        "models": {"teacher": str(tiny_model)},
    }


def labels(folder: Path) -> str:
    return hash_file(folder / "run/stages/1-label/labeled.json")


def wait_for_answers(process: Any, folder: Path, lines: int) -> None:
    """Wait until so many lines are in the journal of a run's label stage."""
    journal = folder / "run/stages/1-label/journal.jsonl"
    ends = time.monotonic() + 240
    while time.monotonic() < ends and process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=30))


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The labels of a run that is not interrupted, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    code, out = run(write_config(folder, pooled_job(folder, tiny_model, 200)))
    assert code == 0, out
    return labels(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_takes_its_workers_along_and_is_resumed(
    number: signal.Signals, whole: str, tiny_model: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path, pooled_job(tmp_path, tiny_model, 200, workers=2))
    process = start(path)
    wait_for_answers(process, tmp_path, 3)
    started = below(process.pid)
    assert len(started) >= 2
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert_all_gone(started)
    code, out = run(path)
    assert code == 0, out
    assert "rows already done" in out
    assert labels(tmp_path) == whole
    assert_once(tmp_path / "run/stages/1-label/journal.jsonl", 200)


@pytest.mark.slow
def test_a_broken_teacher_ends_the_run_with_its_error(tiny_model: Path, tmp_path: Path) -> None:
    job = pooled_job(tmp_path, tiny_model, 8, workers=2, template=str(tmp_path / "broken.jinja"))
    (tmp_path / "broken.jinja").write_text("{% for %}")
    code, out = run(write_config(tmp_path, job))
    assert code == 1
    assert "the chat template is not valid Jinja: line 1" in out
