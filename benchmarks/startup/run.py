"""Seconds from the command's start to the first step of a training: in one process, and in two under each strategy.

Arms run in turn, every second round in the opposite order. CPU seconds are those of the whole run in all processes.

    python -m benchmarks.startup.run [--strategies ddp zero2 zero3 fsdp2] [--rounds 3] [--no-save]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import save, spread
from tests.conftest import TEACHER, _make_tiny
from tests.support.jobs import command, write_config
from tests.support.kill_jobs import JOBS
from tests.support.tiny import SMALL_VOCABULARY

from easydistill.models.reference import model_directory, resolve

ALONE = "one process"
STEPS = 4
MOST = 10.0
"""Seconds that two processes may take more than one."""


def measure(folder: Path, student: Path, arm: str) -> dict[str, float]:
    """One run: seconds to its first step, and CPU seconds of it all."""
    job = JOBS["supervised"](folder, student, arm)
    job["training"] = {**job["training"], "max_steps": STEPS}
    if arm == ALONE:
        del job["launch"]
    config = write_config(folder, job)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(command("run", str(config)), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    first = next(line["time"] for line in lines if line["stage"] == "train")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"to_first_step": first - started, "cpu_seconds": spent, "load_average": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arms = [ALONE, *arguments.strategies]
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = _make_tiny(folder / "student", Path(model_directory(resolve(TEACHER))), SMALL_VOCABULARY)
        for number in range(arguments.rounds):
            for arm in arms if number % 2 == 0 else reversed(arms):
                where = folder / f"{arm}-{number}"
                where.mkdir()
                runs[arm].append(measure(where, student, arm))
                print(f"{number + 1}: {arm}: {runs[arm][-1]}", file=sys.stderr, flush=True)
    result = summary(runs)
    if arguments.no_save:
        print(json.dumps(result, indent=2))
    else:
        print(save(Path(__file__).parent, "startup", result))


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    found = {
        arm: {name: spread([run[name] for run in of_arm]) for name in ("to_first_step", "cpu_seconds", "load_average")}
        for arm, of_arm in runs.items()
    }
    alone = found[ALONE]["to_first_step"]["median"]
    more = {arm: round(of_arm["to_first_step"]["median"] - alone, 2) for arm, of_arm in found.items() if arm != ALONE}
    return {"more_than_one_process": more, "most_allowed": MOST, "arms": found}


if __name__ == "__main__":
    main()
