"""kill -9 of a training's processes at random moments: of a rank, and of the command. Then the same command again.

A trial is wrong if the command does not end within 30 seconds with the right exit code and message, if a process of
it is left, or if the resumed run differs in one bit of the student's weights or of a step's figures. Moments are drawn
from the seed: every second one from the training's steps, the others from all the time in which the victim runs, most
of which is its start.

    python -m benchmarks.kills.run [--strategies ddp zero2 zero3 fsdp2] [--rounds 10] [--seed 0] [--no-save]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import save
from tests.conftest import TEACHER, _make_tiny
from tests.support.kill_jobs import JOBS
from tests.support.random_kills import During, trial, uninterrupted
from tests.support.tiny import SMALL_VOCABULARY

from easydistill.models.reference import model_directory, resolve


def measure(folder: Path, student: Path, strategy: str, kind: str, rounds: int, seed: int) -> dict[str, Any]:
    """All trials of a job under a strategy."""

    def make(where: Path) -> dict[str, Any]:
        return JOBS[kind](where, student, strategy)

    whole = uninterrupted(folder / "whole", make)
    print(f"{kind}, {strategy}: {whole.ended_at:.1f} s uninterrupted", file=sys.stderr, flush=True)
    trials = []
    for number in range(rounds):
        for victim in ("rank", "parent"):
            where = folder / f"{victim}-{number}"
            during: During = "steps" if number % 2 == 0 else "run"
            found = trial(where, make, whole, victim, during, f"{seed}:{kind}:{strategy}:{victim}:{number}")
            trials.append(found)
            print(f"  {found}", file=sys.stderr, flush=True)
            if not found["wrong"]:
                shutil.rmtree(where)
    slowest = max(found["seconds_to_end"] for found in trials)
    return {
        "uninterrupted_seconds": round(whole.ended_at, 2),
        "killed": sum(found["killed"] for found in trials),
        "wrong": sum(bool(found["wrong"]) for found in trials),
        "slowest_end_seconds": slowest,
        "trials": trials,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--jobs", nargs="+", default=["supervised"], choices=list(JOBS))
    parser.add_argument("--rounds", type=int, default=10, help="kills of a rank, and as many of the command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the runs that were wrong here")
    parser.add_argument("--name", default="kills", help="of the file with the results")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    student = _make_tiny(folder / "student", Path(model_directory(resolve(TEACHER))), SMALL_VOCABULARY)
    results: dict[str, Any] = {"seed": arguments.seed, "load_average": os.getloadavg()[0], "results": {}}
    for kind in arguments.jobs:
        for strategy in arguments.strategies:
            name = f"{kind}, {strategy}"
            where = folder / f"{kind}-{strategy}"
            results["results"][name] = measure(where, student, strategy, kind, arguments.rounds, arguments.seed)
            if not arguments.no_save:
                # After each, so that a long benchmark that is ended has what it found.
                print(save(Path(__file__).parent, arguments.name, results), file=sys.stderr)
    if arguments.folder is None:
        shutil.rmtree(folder)
    wrong = sum(found["wrong"] for found in results["results"].values())
    print(f"{wrong} trials were wrong", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
