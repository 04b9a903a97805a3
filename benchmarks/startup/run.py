"""Seconds from the command's start to the first step of a training: in one process, and in two under each strategy.

Arms run in turn, every second round in the opposite order. On a machine with other work the seconds say little; so the
CPU seconds until then are told too, of the command and of the busier of its two processes, one after the other: what a
quiet machine with a core for each would take, but for waiting.

    python -m benchmarks.startup.run [--strategies ddp zero2 zero3 fsdp2] [--rounds 3] [--no-save]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
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
    """One run: seconds to its first step, and CPU seconds."""
    job = JOBS["supervised"](folder, student, arm)
    job["training"] = {**job["training"], "max_steps": STEPS}
    if arm == ALONE:
        del job["launch"]
    config = write_config(folder, job)
    started = time.time()
    with (folder / "said.log").open("wb") as said:
        run = subprocess.Popen(command("run", str(config)), cwd=folder, stdout=said, stderr=subprocess.STDOUT)
    metrics = folder / "run/metrics.jsonl"
    while not (metrics.is_file() and '"train"' in metrics.read_text()):
        if run.poll():
            raise RuntimeError((folder / "said.log").read_text()[-3000:])
        time.sleep(0.02)
    first = next(line["time"] for line in map(json.loads, metrics.read_text().splitlines()) if line["stage"] == "train")
    children = [psutil.Process(run.pid), *psutil.Process(run.pid).children()]
    own, *others = (sum(process.cpu_times()[:2]) for process in children)
    run.wait()
    return {
        "to_first_step": first - started,
        "cpu_to_first_step": own + max(others, default=0.0),
        "load_average": os.getloadavg()[0],
    }


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
    found = {arm: {name: spread([run[name] for run in of_arm]) for name in of_arm[0]} for arm, of_arm in runs.items()}
    more = {
        arm: {
            name: round(of_arm[name]["median"] - found[ALONE][name]["median"], 2)
            for name in ("to_first_step", "cpu_to_first_step")
        }
        for arm, of_arm in found.items()
        if arm != ALONE
    }
    return {"more_than_one_process": more, "most_allowed": MOST, "arms": found}


if __name__ == "__main__":
    main()
