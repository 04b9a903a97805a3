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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.common import save
from tests.conftest import TEACHER, _make_tiny
from tests.support.kill_jobs import JOBS
from tests.support.random_kills import During, Uninterrupted, Victim, trial, uninterrupted
from tests.support.tiny import SMALL_VOCABULARY

from easydistill.models.reference import model_directory, resolve

VICTIMS: tuple[Victim, ...] = ("rank", "parent")


@dataclass
class Arm:
    """A job under a strategy."""

    folder: Path
    student: Path
    kind: str
    strategy: str
    trials: list[dict[str, Any]] = field(default_factory=list)

    def make(self, where: Path) -> dict[str, Any]:
        return JOBS[self.kind](where, self.student, self.strategy)

    @cached_property
    def whole(self) -> Uninterrupted:
        return uninterrupted(self.folder / "whole", self.make)

    def kill(self, victim: Victim, number: int, seed: int) -> None:
        """One trial; the folder of one that was wrong is kept."""
        during: During = "steps" if number % 2 == 0 else "run"
        where = self.folder / f"{victim}-{number}"
        name = f"{seed}:{self.kind}:{self.strategy}:{victim}:{number}"
        found = trial(where, self.make, self.whole, victim, during, name)
        self.trials.append(found)
        print(f"{self.kind}, {self.strategy}: {found}", file=sys.stderr, flush=True)
        if not found["wrong"]:
            shutil.rmtree(where)

    def summary(self) -> dict[str, Any]:
        return {
            "uninterrupted_seconds": round(self.whole.ended_at, 2),
            "killed": {
                victim: sum(one["killed"] for one in self.trials if one["victim"] == victim) for victim in VICTIMS
            },
            "wrong": sum(bool(one["wrong"]) for one in self.trials),
            "slowest_end_seconds": max(one["seconds_to_end"] for one in self.trials),
            "trials": self.trials,
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
    arms = [
        Arm(folder / f"{kind}-{strategy}", student, kind, strategy)
        for kind in arguments.jobs
        for strategy in arguments.strategies
    ]
    for number in range(arguments.rounds):
        for arm in arms:
            for victim in VICTIMS:
                arm.kill(victim, number, arguments.seed)
            if not arguments.no_save:
                # Each time, so that a long benchmark that is ended has what it found.
                tried = {f"{one.kind}, {one.strategy}": one.summary() for one in arms if one.trials}
                result = {"seed": arguments.seed, "load_average": os.getloadavg()[0], "results": tried}
                save(Path(__file__).parent, arguments.name, result)
    if arguments.folder is None:
        shutil.rmtree(folder)
    wrong = sum(arm.summary()["wrong"] for arm in arms)
    print(f"{wrong} trials were wrong", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
