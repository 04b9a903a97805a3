"""The jobs `grpo` and `ppo` on the command line: figures, a kill, a second run, a critic from a reward model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.jobs import run_here, start, write_config

from easydistill.data.files import hash_file


def job(name: str, folder: Path, student: Path, **policy: Any) -> dict[str, Any]:
    """A tiny student that is asked sums; it mostly learns to be brief."""
    rows = [{"instruction": f"{a} plus {b}", "answer": a + b} for a in range(4) for b in range(5)]
    rows += [{"instruction": f"always right {n}", "answer": n, "pass_rate": 1.0} for n in range(3)]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return {
        "job_type": name,
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(path), "max_rejected_share": 0.5},
        "models": {"student": str(student)},
        "rewards": {"verify": {}, "length": {"max_tokens": 6, "buffer": 6, "weight": 0.5}},
        "policy": {"max_new_tokens": 8, "eval_steps": 2, **policy},
        "training": {
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "max_length": 64,
            "save_steps": 1,
            "logging_steps": 1,
        },
        "evaluation": {"heldout": 4},
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"num_generations": 4, "mask_truncated": False, "beta": 0.01},
    "ppo": {"num_iterations": 2},
}


@pytest.mark.parametrize("name", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_and_resumed(name: str, tiny_model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    code, out = run_here(write_config(whole, job(name, whole, tiny_model, **SETTINGS[name])))
    assert code == 0, out
    summary = json.loads((whole / "run/summary.json").read_text())
    train = summary["stages"]["train"]["metrics"]
    assert [entry["step"] for entry in train["course"]] == [0, 2, 4, 6]
    assert {"reward", "reward/verify", "reward/length", "verified_accuracy", "length"} <= set(train["after"])
    assert summary["stages"]["train"]["rows"]["rejected"] == {"pass_rate": 2}, "and one is held out"
    assert "cut_off" in train["alarms"], "a model with random weights does not end"
    report = (whole / "run/report.md").read_text()
    assert "Rewards over training" in report
    assert "rewards: " in report

    config = write_config(broken, job(name, broken, tiny_model, **SETTINGS[name]))
    process = start(config)
    checkpoints = broken / "run/stages/1-train/checkpoints"
    until = time.monotonic() + 120
    while not list(checkpoints.glob("*/checkpoint-[2-5]/whole.json")) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (broken / "run/student").exists(), "it was killed on the way"
    code, out = run_here(config)
    assert code == 0, out
    weights = "run/student/model.safetensors"
    assert hash_file(whole / weights) == hash_file(broken / weights)
    again = json.loads((broken / "run/summary.json").read_text())["stages"]["train"]["metrics"]
    assert again["course"] == train["course"]
    assert again["alarms"] == train["alarms"]

    before = time.monotonic()
    code, out = run_here(config)
    assert code == 0, out
    assert time.monotonic() - before < 60
    assert hash_file(whole / weights) == hash_file(broken / weights)


def test_rows_that_rewards_cannot_read_are_rejected_before_training(tiny_model: Path, tmp_path: Path) -> None:
    document = job("grpo", tmp_path, tiny_model, **SETTINGS["grpo"])
    document["rewards"]["verify"] = {"cut_off": "abstain"}
    document["training"]["max_steps"] = 1
    rows = json.loads((tmp_path / "rows.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"instruction": "bad", "answer": "x", "reference": [1]}]))
    document["rewards"]["verify"]["field"] = "reference"
    code, out = run_here(write_config(tmp_path, document))
    assert code == 0, out
    stage = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["train"]
    assert stage["rows"]["rejected"] == {"malformed_row": 1, "pass_rate": 2}


def test_rows_that_no_reward_can_judge_are_not_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    document = job("grpo", tmp_path, tiny_model, **SETTINGS["grpo"])
    rows = [{"instruction": f"Sing, {n}!"} for n in range(9)] + [{"instruction": "Sing!", "output": "Once upon."}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    document["rewards"] = {"verify": {}, "length": {"max_tokens": 6, "buffer": 6, "weight": 0}}
    document["dataset"]["max_rejected_share"] = 1.0
    code, out = run_here(write_config(tmp_path, document))
    assert code == 1
    assert "no row is left\n    unjudged, " in out and "rewards.verify cannot judge any answer" in out
    document["rewards"]["length"]["weight"] = 0.5
    document["training"]["max_steps"] = 1
    code, out = run_here(write_config(tmp_path, document))
    assert code == 0, "the length reward needs no known answer"


def test_truncated_held_out_answers_are_wrong(tiny_model: Path, tmp_path: Path) -> None:
    document = job("grpo", tmp_path, tiny_model, **SETTINGS["grpo"])
    document["rewards"]["verify"] = {"cut_off": "abstain"}
    document["training"]["max_steps"] = 1
    code, out = run_here(write_config(tmp_path, document))
    assert code == 0, out
    after = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["train"]["metrics"]["after"]
    assert after["ended"] < 1
    assert after["verified"] == 4, "the accuracy counts all held-out prompts, not only those whose answers ended"


def test_ppo_with_a_reward_model_as_reward_and_critic(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "judge")
    document = job("ppo", tmp_path, tiny_model, critic="reward_model")
    document["rewards"] = {"reward_model": {"model": str(tmp_path / "judge")}}
    code, out = run_here(write_config(tmp_path, document))
    assert code == 0, out
    entries = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [entry for entry in entries if entry["stage"] == "policy"]
    assert all("value_loss" in entry for entry in logged)
    assert [entry["step"] for entry in logged if "reward/reward_model" in entry] == [1, 5], "a round serves four steps"
    names = (tmp_path / "run/student").iterdir()
    assert "critic.pt" not in {path.name for path in names}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"policy": {"num_generations": 3}}, "whole groups"),
        ({"rewards": {}}, "there is no reward"),
        ({"rewards": {"judge": {}}}, "rewards.judge needs a judge"),
        ({"dataset": {}}, "there are no prompts"),
        ({"policy": {"critic": "value_head"}}, "critic"),
        ({"judge": {"inference": {"backend": "transformers"}}}, "`judge` is not used"),
        ({"job_type": "ppo", "policy": {"critic": "reward_model", "max_new_tokens": 8}}, "there is none"),
        ({"job_type": "ppo", "policy": {"beta": 0.1}}, "`policy.beta` is a key of grpo jobs"),
    ],
)
def test_invalid_configs_are_explained(change: dict[str, Any], word: str, tiny_model: Path, tmp_path: Path) -> None:
    document = job("grpo", tmp_path, tiny_model, **SETTINGS["grpo"]) | change
    code, out = run_here(write_config(tmp_path, document))
    assert code == 2
    assert word in out
