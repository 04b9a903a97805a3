"""Learning from own answers with a student that processes share: what one process learns, however it is interrupted."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_deepspeed import FILE, LORA, exact_norms
from tests.e2e.test_launch import assert_all_gone, wait_for_step, weights
from tests.e2e.test_launch_preferences import assert_same_course
from tests.e2e.test_launch_rl import SPREAD, distillation_job, policy_job, tiny_teacher
from tests.support.jobs import run_here, start, write_config

pytest.importorskip("deepspeed")
__all__ = ["tiny_teacher"]

STRATEGIES: dict[str, dict[str, Any]] = {
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2"},
    "zero2-offload": {"strategy": "zero2", "offload": ["optimizer"]},
    "zero3": {"strategy": "zero3"},
    "zero3-offload": {"strategy": "zero3", "offload": ["optimizer", "parameters"]},
    "file": {"deepspeed": FILE},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2-offload": {"strategy": "fsdp2", "offload": ["optimizer", "parameters"]},
}
FIGURES = {"grpo": ("train", "policy", "heldout"), "ppo": ("train", "policy", "heldout")}
ANSWERING: dict[str, dict[str, Any]] = {
    "grpo": {"policy": SPREAD},
    "ppo": {"job_type": "ppo", "policy": {"steps_per_rollout": 2, "critic_learning_rate": 1e-3}},
    "jsd": {"objective": "generalized_jsd"},
    "sampled": {"objective": "sampled_reverse_kl", "steps_per_rollout": 2},
    "cold start": {"objective": "generalized_jsd", "sft_steps": 2},
    "cold start, sampled": {"objective": "sampled_reverse_kl", "sft_steps": 2},
}


class Jobs:
    """Makes jobs on own answers, and knows what one process learns from each."""

    def __init__(self, student: Path, teacher: Path, make: Callable[[str], Path]) -> None:
        self._student, self._teacher, self._make = student, teacher, make
        self._alone: dict[str, Path] = {}

    def job(self, folder: Path, kind: str, processes: int, launch: dict[str, Any], **training: Any) -> dict[str, Any]:
        changes = copy.deepcopy(ANSWERING[kind])
        if kind in FIGURES:
            made = policy_job(folder, self._student, processes, 8 // processes, **changes)
        else:
            made = distillation_job(folder, self._student, self._teacher, processes, 4 // processes, **changes)
        steps = launch.get("deepspeed", {}).get("gradient_accumulation_steps", 1)
        made["training"] |= {"gradient_accumulation_steps": steps, **training}
        if "deepspeed" in launch:
            (folder / "ds.json").write_text(json.dumps(launch["deepspeed"]))
            launch = {**launch, "deepspeed": str(folder / "ds.json")}
        made["launch"] = {"processes": processes, **launch}
        return made

    def alone(self, kind: str, steps: int, **training: Any) -> Path:
        """The folder of a run in one process."""
        key = json.dumps([kind, steps, training])
        if key not in self._alone:
            folder = self._make("alone")
            made = self.job(folder, kind, 1, {}, **{"gradient_accumulation_steps": steps, **training})
            with exact_norms():
                code, out = run_here(write_config(folder, made))
            assert code == 0, out
            self._alone[key] = folder
        return self._alone[key]

    def compare(self, folder: Path, kind: str, strategy: str, **training: Any) -> None:
        launch = STRATEGIES[strategy]
        made = self.job(folder, kind, 2, launch, **training)
        with exact_norms():
            code, out = run_here(write_config(folder, made))
        assert code == 0, out
        alone = self.alone(kind, made["training"]["gradient_accumulation_steps"], **training)
        assert_same_course(folder, alone, *FIGURES.get(kind, ("train", "rollouts")))


@pytest.fixture(scope="module")
def jobs(tiny_model: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tiny_model, tiny_teacher, tmp_path_factory.mktemp)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ANSWERING)
def test_parts_learn_from_own_answers_what_one_process_learns(
    kind: str, strategy: str, jobs: Jobs, tmp_path: Path
) -> None:
    jobs.compare(tmp_path, kind, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("kind", ["grpo", "ppo", "jsd", "sampled"])
def test_adapters_learn_from_own_answers_what_they_learn_in_one_process(
    kind: str, strategy: str, jobs: Jobs, tmp_path: Path
) -> None:
    jobs.compare(tmp_path, kind, strategy, **LORA)


def test_parts_write_and_learn_from_answers(jobs: Jobs, tmp_path: Path) -> None:
    jobs.compare(tmp_path, "grpo", "fsdp2")


LONG = {"max_steps": 16}
FIRST_SAVED = {"ppo": 8, "sampled": 2}
"""Steps until a checkpoint: PPO saves at the ends of rounds."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), [("ppo", "zero3"), ("ppo", "fsdp2"), ("sampled", "zero3")])
def test_a_killed_rank_ends_the_run_and_it_resumes(kind: str, strategy: str, jobs: Jobs, tmp_path: Path) -> None:
    launch = STRATEGIES[strategy]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    code, out = run_here(write_config(whole, jobs.job(whole, kind, 2, launch, **LONG)))
    assert code == 0, out
    config = write_config(cut, jobs.job(cut, kind, 2, launch, **LONG))
    run = start(config)
    ranks = wait_for_step(run, cut, FIRST_SAVED[kind] + 1)
    os.kill(ranks[1], signal.SIGKILL)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 1, out
    assert_all_gone(ranks)
    assert any((cut / "run/stages").rglob("whole.json")), "there is something to go on from"
    code, out = run_here(config)
    assert code == 0, out
    assert weights(cut) == weights(whole)
