"""Learning from own answers in several processes: the same student as in one, however it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.test_launch import assert_all_gone, wait_for_step, weights
from tests.e2e.test_launch_preferences import assert_same_course
from tests.support.jobs import run_here, start, write_config
from tests.support.scripted_server import ScriptedServer

PROMPTS = [{"instruction": f"What is {number} plus {number % 3}?", "output": "x"} for number in range(14)]


def policy_job(folder: Path, student: Path, processes: int, batch: int, **changes: Any) -> dict[str, Any]:
    rows = folder / "prompts.json"
    rows.write_text(json.dumps(PROMPTS))
    training, policy = changes.pop("training", {}), changes.pop("policy", {})
    return {
        "job_type": "grpo",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(rows)},
        "models": {"student": str(student)},
        # About every third answer of a student that knows nothing begins so.
        "rewards": {"format": {"pattern": r"(?s)\s*[a-j].*"}, "length": {"max_tokens": 16, "buffer": 8, "weight": 0.5}},
        "policy": {"max_new_tokens": 16, "eval_steps": 2, **policy},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": batch,
            "learning_rate": 1e-3,
            "max_length": 96,
            "logging_steps": 1,
            "save_steps": 2,
            "bf16": False,
            **training,
        },
        "evaluation": {"heldout": 4},
        "launch": {"processes": processes},
        **changes,
    }


def both(tmp_path: Path, student: Path, **changes: Any) -> tuple[Path, Path]:
    """The folders of a run in two processes, and of one with the same batches in one."""
    folders = tmp_path / "two", tmp_path / "one"
    for folder, processes, batch in zip(folders, (2, 1), (4, 8), strict=True):
        folder.mkdir()
        code, out = run_here(write_config(folder, policy_job(folder, student, processes, batch, **changes)))
        assert code == 0, out
        assert ("2 processes" in out) == (processes == 2)
    return folders


SPREAD = {"num_generations": 4, "mask_truncated": False, "steps_per_rollout": 2, "num_iterations": 2, "beta": 0.05}


def test_two_processes_learn_from_rewards_what_one_learns(tiny_model: Path, tmp_path: Path) -> None:
    two, one = both(tmp_path, tiny_model, policy=SPREAD)
    assert_same_course(two, one, "train", "policy", "heldout")


VARIANTS: dict[str, dict[str, Any]] = {
    "ppo with a value head": {"job_type": "ppo", "policy": {"steps_per_rollout": 2, "critic_learning_rate": 1e-3}},
    "grpo with lora": {
        "policy": {"num_generations": 4, "mask_truncated": False, "beta": 0.05},
        "training": {"lora": {"r": 4}, "gradient_accumulation_steps": 2, "max_steps": 3},
    },
    "grpo by the mean of each micro-batch's tokens": {
        "policy": {"num_generations": 4, "mask_truncated": False, "loss_type": "bnpo"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_learn_in_two_processes_what_they_learn_in_one(variant: str, tiny_model: Path, tmp_path: Path) -> None:
    two, one = both(tmp_path, tiny_model, **VARIANTS[variant])
    assert_same_course(two, one, "train", "policy", "heldout")


@pytest.mark.slow
def test_a_judge_is_asked_once_about_an_answer_whatever_process_wrote_it(tiny_model: Path, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    for processes, batch in ((2, 4), (1, 8)):
        server = ScriptedServer()
        server.say = lambda text, number: f"<score>{zlib.crc32(text.encode()) % 10}</score>"
        folder = tmp_path / ("two" if processes == 2 else "one")
        folder.mkdir()
        judged = {
            "rewards": {"judge": {}, "format": {"pattern": r"(?s)\s*[a-j].*"}},
            "judge": {"inference": {"base_url": server.url, "model": "judge", "temperature": 0.0}},
            "policy": {"num_generations": 4, "mask_truncated": False},
        }
        code, out = run_here(write_config(folder, policy_job(folder, tiny_model, processes, batch, **judged)))
        server.close()
        assert code == 0, out
        asked.append(sorted(server.asked))
        assert [path.name for path in (folder / "run").rglob("judge-*.jsonl")] == ["judge-0.jsonl"]
    assert_same_course(tmp_path / "two", tmp_path / "one", "train", "policy", "heldout")
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == len(asked[0]) > 30


def distillation_job(folder: Path, student: Path, teacher: Path, processes: int, batch: int, **on_policy: Any) -> Any:
    """On-policy distillation, of which half of the sequences are the teacher's answers."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps([{**row, "output": f"It is {row['instruction'][8:12]}."} for row in PROMPTS]))
    return {
        "job_type": "on_policy_kd",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(rows)},
        "models": {"student": str(student), "teacher": str(teacher)},
        "inference": {"dtype": "float32"},
        "on_policy": {"max_new_tokens": 12, **on_policy},
        "training": {
            "max_steps": 5,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "max_length": 64,
            "logging_steps": 1,
            "save_steps": 2,
            "bf16": False,
        },
        "evaluation": {"heldout": 0},
        "launch": {"processes": processes},
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "on_policy",
    [
        {"objective": "generalized_jsd", "sft_steps": 2},
        {"objective": "sampled_reverse_kl", "steps_per_rollout": 2},
    ],
    ids=lambda on_policy: on_policy["objective"],
)
def test_two_processes_learn_from_their_own_answers_what_one_learns(
    on_policy: dict[str, Any], tiny_model: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    folders = tmp_path / "two", tmp_path / "one"
    for folder, processes, batch in zip(folders, (2, 1), (3, 6), strict=True):
        folder.mkdir()
        job = distillation_job(folder, tiny_model, tiny_teacher, processes, batch, **on_policy)
        code, out = run_here(write_config(folder, job))
        assert code == 0, out
        assert ("2 processes" in out) == (processes == 2)
    assert_same_course(*folders, "train", "rollouts")


@pytest.fixture(scope="module")
def tiny_teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the student's tokens, other weights, and opinions of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny-teacher")
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(tiny_model, initializer_range=0.4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_shared_optimiser_learns_what_a_whole_one_learns(tiny_model: Path, tmp_path: Path) -> None:
    folders = tmp_path / "two", tmp_path / "one"
    for folder, launch, batch in zip(folders, ({"processes": 2, "strategy": "zero2"}, None), (4, 8), strict=True):
        folder.mkdir()
        job = policy_job(folder, tiny_model, 2, batch, policy=SPREAD, launch=launch)
        code, out = run_here(write_config(folder, job))
        assert code == 0, out
    assert_same_course(*folders, "train", "policy", "heldout")


LONG: dict[str, Any] = {"policy": SPREAD, "training": {"max_steps": 12}}


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes, long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("grpo-in-two")
    code, out = run_here(write_config(folder, policy_job(folder, tiny_model, 2, 4, **LONG)))
    assert code == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_it_resumes(victim: int, in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, policy_job(tmp_path, tiny_model, 2, 4, **LONG))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 6)
    os.kill(ranks[victim], signal.SIGKILL)
    err, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"process {victim} of the stage was killed by SIGKILL" in err
    assert_all_gone(ranks)
    code, out = run_here(config, "--set", "launch.processes=1", "--set", "training.per_device_train_batch_size=4")
    assert code == 2, "the checkpoint is kept for as many processes as wrote it"
    assert "set launch.processes=2" in out
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_ctrl_c_stops_all_at_the_end_of_a_round(in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, policy_job(tmp_path, tiny_model, 2, 4, **LONG))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 5)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert_all_gone(ranks)
    assert run_here(config)[0] == 0
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policy": {"rollouts": "vllm"}}, "vLLM's engine inside the training cannot be shared"),
        ({"policy": {"num_generations": 7}}, "steps_per_rollout × launch.processes"),
    ],
)
def test_what_processes_cannot_share_is_refused(
    changes: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path
) -> None:
    code, out = run_here(write_config(tmp_path, policy_job(tmp_path, tiny_model, 2, 4, **changes)))
    assert code == 2
    assert told in out


OWN_REWARD = """
from helper_of_two import LENGTH

def brief(completions, *, weight_of_a_word: float = 0.1, **columns):
    return [max(0.0, 1.0 - weight_of_a_word * len(chat[0]["content"].split()) / LENGTH) for chat in completions]
"""


@pytest.mark.slow
def test_a_reward_of_a_plain_file_in_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    """Each process imports the file; the caller is told of the steps that they make; a changed function runs again."""
    import easydistill
    from easydistill.engine.events import StageStarted, TrainingStep

    (tmp_path / "mine.py").write_text(OWN_REWARD)
    (tmp_path / "helper_of_two.py").write_text("LENGTH = 2\n")
    rewards = {"rewards": {"mine.py:brief": {"weight_of_a_word": 0.2}}}
    path = write_config(tmp_path, policy_job(tmp_path, tiny_model, 2, 4, policy={"num_generations": 4}, **rewards))
    events: list[Any] = []
    result = easydistill.run(path, quiet=True, on_progress=events.append)
    steps = [event for event in events if isinstance(event, TrainingStep)]
    assert {event.step for event in steps if event.stage == "policy"} == {1, 2, 3, 4}
    assert any("reward/mine.py:brief" in event.values for event in steps)
    assert list(result.steps())[-1]["step"] == steps[-1].step
    assert "reward/mine.py:brief" in result.metrics["after"]

    (tmp_path / "helper_of_two.py").write_text("LENGTH = 3\n")
    events.clear()
    assert easydistill.run(path, ["training.max_steps=1"], quiet=True, on_progress=events.append).fresh
    started = next(event for event in events if isinstance(event, StageStarted) and event.stage == "train")
    assert "rewards.mine.py:brief.file" in started.why
