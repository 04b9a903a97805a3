"""Seconds until a student's held-out KL divergence is 1.8: the quickstart's job beside TRL's trainers.

    ours      the job itself: its teacher scores the answers, which counts, and the student learns both
    trl_sft   TRL's SFTTrainer on the answers
    trl_gkd   TRL's GKDTrainer on the answers (lambda 0), forward KL to the teacher in memory

The same teacher, start of the student, answers, held-out rows, number types, batch size, learning rate and optimiser.
The teacher answers once, for all arms. Every few steps the clock is halted and KL measured as the evaluation measures
it. The learning rate falls to zero over the epochs of a schedule: the quickstart's has two. An arm that does not get
there is given the next schedule of `--epochs`, from the start again; its time is that of the schedule that gets there,
without those that did not. A training is broken off after `--seconds` of its clock, and its arm with it. Each is a
process of its own. Imports are not counted; loading the teacher is.

    python -m benchmarks.time_to_kl.run [--target 1.8] [--epochs 2 3] [--seconds 400] [--every 4] [--seeds 0] [--tiny]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULT, run_worker, save

HERE = Path(__file__).parent
SIDES = ("ours", "trl_gkd", "trl_sft")


def worker(side: str, epochs: int, seed: int, arguments: argparse.Namespace) -> None:
    from benchmarks.time_to_kl.arms import ARMS
    from benchmarks.time_to_kl.work import Course, HeldoutKL, job, rows, size_of

    tiny = arguments.tiny
    train, heldout = rows(tiny, job(tiny)["dataset"]["seed"])
    measure = HeldoutKL(size_of(tiny), heldout)
    course = Course(measure, arguments.target, arguments.seconds, arguments.every)
    settings = {"num_train_epochs": epochs, "seed": seed}
    more = ARMS[side](train, course, tiny, settings)
    found = {"side": side, "seed": seed, "epochs": epochs, "rows": len(train), "heldout_rows": len(heldout)}
    found |= {"steps": course.steps, "seconds": round(course.seconds, 2), "reached": course.reached}
    print(RESULT + json.dumps({**found, **more, "course": course.points}))


def first_that_reaches(side: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The trainings of an arm, by schedule; the last one got there, or none did."""
    found: list[dict[str, Any]] = []
    shared = ["--target", str(arguments.target), "--seconds", str(arguments.seconds), "--every", str(arguments.every)]
    shared += ["--tiny"] if arguments.tiny else []
    for epochs in arguments.epochs:
        own = ["--worker", side, "--epochs", str(epochs), "--seeds", str(seed)]
        found.append(run_worker("benchmarks.time_to_kl.run", *own, *shared))
        print(summary(found[-1], arguments.target), flush=True)
        if found[-1]["reached"] or found[-1]["seconds"] > arguments.seconds:
            break
    return found


def summary(run: dict[str, Any], target: float) -> str:
    reached, last = run["reached"], run["course"][-1] if run["course"] else None
    name = f"{run['side']}, seed {run['seed']}, schedule of {run['epochs']} epochs"
    if reached:
        return f"{name}: KL {target} after {reached['seconds']} s, step {reached['step']}"
    return f"{name}: KL {target} not reached by {run['seconds']} s, step {run['steps']}; last measured {last}"


def ratios(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Our seconds over each peer's. A peer that never got there is named with the seconds of its longest training."""
    last = {side: trainings[-1] for side, trainings in runs.items()}
    if not last["ours"]["reached"]:
        return {"ours": "not reached"}
    own = last["ours"]["reached"]["seconds"]
    found: dict[str, Any] = {}
    for side in SIDES[1:]:
        reached = last[side]["reached"]
        if reached:
            found[f"ours_over_{side}"] = round(own / reached["seconds"], 4)
        else:
            longest = max(training["seconds"] for training in runs[side])
            found[f"ours_over_{side}"] = f"below {own / longest:.4f}: not reached by {longest} s"
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=float, help="nats a token (1.8; with --tiny one that is reached at once)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 3], help="schedules to try")
    parser.add_argument("--seconds", type=float, default=400, help="longest training, by its clock")
    parser.add_argument("--every", type=int, default=4, help="steps between measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep-labels", action="store_true", help="the answers in runs/time_to_kl, of another machine")
    parser.add_argument("--tiny", action="store_true", help="two layers and few rows, to see that it works; not saved")
    parser.add_argument("--json", action="store_true", help="print the result alone at the end")
    parser.add_argument("--worker", choices=SIDES)
    arguments = parser.parse_args()
    if arguments.target is None:
        arguments.target = 15.0 if arguments.tiny else 1.8
    if arguments.worker:
        worker(arguments.worker, arguments.epochs[0], arguments.seeds[0], arguments)
        return
    from benchmarks.time_to_kl.work import make_labels

    if not arguments.keep_labels:
        make_labels(arguments.tiny)
    result: dict[str, Any] = {"target": arguments.target, "every": arguments.every, "most_seconds": arguments.seconds}
    result |= {"schedules": arguments.epochs, "seeds": {}}
    for seed in arguments.seeds:
        runs = {side: first_that_reaches(side, seed, arguments) for side in SIDES}
        result["seeds"][str(seed)] = {"ratios": ratios(runs), "runs": runs}
    print(json.dumps(result) if arguments.json else {seed: one["ratios"] for seed, one in result["seeds"].items()})
    if not arguments.tiny:
        print(save(HERE, "time_to_kl", result))


if __name__ == "__main__":
    main()
