"""GRPO and PPO with SmolLM2-135M on sums of numbers of one digit: the course of reward and right held-out answers.

The shipped examples, run as a user runs them, with seeds of their own and more sums held out; the result is the course
that `summary.json` tells. Held-out sums are never trained on, and answers to them are greedy.

    python -m benchmarks.rl.run [--jobs grpo ppo] [--seeds 0] [--steps 40]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HELD_OUT = 40


def course(job: str, seed: int, steps: int) -> dict[str, Any]:
    """Held-out figures by step, seconds a step, alarms."""
    import easydistill

    settings = {
        "output_dir": str(ROOT / "runs" / "rl_benchmark" / f"{job}-{seed}-{steps}"),
        "training.seed": seed,
        "training.max_steps": steps,
        "evaluation.heldout": HELD_OUT,
    }
    config = str(ROOT / "examples" / "reinforcement" / f"{job}.json")
    overrides = [f"{name}={value}" for name, value in settings.items()]
    stage = easydistill.run(config, overrides=overrides, quiet=True).summary["stages"]["train"]
    metrics = stage["metrics"]
    return {
        "course": metrics["course"],
        "alarms": metrics["alarms"],
        "seconds": stage["seconds"],
        "steps": metrics["steps"],
        "trained_tokens": metrics["trained_tokens"],
    }


def main() -> None:
    from benchmarks.common import save

    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", nargs="+", choices=["grpo", "ppo"], default=["grpo", "ppo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"held_out": HELD_OUT}
    for job in arguments.jobs:
        for seed in arguments.seeds:
            found[f"{job}-{seed}"] = course(job, seed, arguments.steps)
            for entry in found[f"{job}-{seed}"]["course"]:
                shown = {name: round(entry[name], 4) for name in ("reward", "verified_accuracy", "length")}
                print(job, seed, entry["step"], shown, flush=True)
    print(save(HERE, "course", found))


if __name__ == "__main__":
    main()
