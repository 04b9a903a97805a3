"""Seconds and peak memory of jobs over many rows, and whether they grow faster than the rows.

    python -m benchmarks.rows.run [--rows 25000 100000 …] [--kind sentences|words] [--jobs deduplicate …] [--folder F]

Each job runs as a user runs it, in a process of its own, on a file of rows of 600 bytes (`make.py`). `journal` writes
the journal of a label job with so many answers, opens it again and looks up each. Each measurement is saved when it is
made, beside those of other jobs and sizes that the result file holds. With `--folder`, the files of rows stay there for
the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import real_data, save
from benchmarks.rows.make import write_rows

HERE = Path(__file__).parent
JOBS = ("deduplicate", "decontaminate", "task_balancing", "instruction_selection", "cot_selection", "journal")
TARGETS = {"Math": 2, "Reasoning": 2, "Code Generation": 1, "Writing": 1, "History": 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--kind", choices=("sentences", "words"), default="sentences")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--name", default="rows")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for count in arguments.rows:
            source = (arguments.folder or Path(folder)) / f"{arguments.kind}-{count}.jsonl"
            if not source.exists():
                write_rows(source, count, arguments.kind)
            for job in arguments.jobs:
                run = Path(folder) / f"{job}-{count}"
                measured = measure(job, source, run, count)
                shutil.rmtree(run)
                print(f"{job:22} {count:>9,} rows  {measured}", flush=True)
                keep(arguments.name, arguments.kind, job, count, measured)


def keep(name: str, kind: str, job: str, count: int, measured: dict[str, Any]) -> None:
    """Save one measurement, beside those of the same kind of rows that are there."""
    path = HERE / "results" / f"{name}.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    jobs = held["jobs"] if held.get("kind") == kind else {}
    jobs.setdefault(job, {})[str(count)] = measured
    save(HERE, name, {"kind": kind, "seed": 0, "jobs": jobs})


def measure(job: str, source: Path, run: Path, count: int) -> dict[str, Any]:
    """Run one job: its seconds, seconds a thousand rows, and peak memory in MiB."""
    command = [sys.executable, "-c", _JOURNAL, str(run), str(count)]
    if job != "journal":
        config = {
            "job_type": job,
            "output_dir": str(run),
            "dataset": {"instruction_path": str(source)},
            "synthesis": settings(job, count),
        }
        run.mkdir(parents=True)
        path = run.with_suffix(".json")
        path.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "easydistill", "run", str(path)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise RuntimeError(errors[-3000:])
    return {
        "seconds": round(seconds, 1),
        "milliseconds_a_row": round(1000 * seconds / count, 3),
        "cpu_milliseconds_a_row": round(1000 * (used.ru_utime + used.ru_stime) / count, 3),
        "peak_mib": used.ru_maxrss // 1024,
    }


def settings(job: str, count: int) -> dict[str, Any]:
    """The `synthesis` section of a job over so many rows."""
    if job == "decontaminate":
        return {"benchmarks": [str(real_data() / "gsm8k_test.jsonl")]}
    if job == "cot_selection":
        return {"mix": {"shares": [0.1, 0.2, 0.1], "total": count // 20}}
    return {"targets": TARGETS} if job == "task_balancing" else {}


_JOURNAL = """
import sys
from pathlib import Path
from easydistill.data.journal import Journal
from easydistill.data.records import content_hash
path, count = Path(sys.argv[1]) / "journal.jsonl", int(sys.argv[2])
keys = [content_hash(number)[:32] for number in range(count)]
with Journal(path) as journal:
    for key in keys:
        journal.append({"key": key, "kind": "completion", "text": "x" * 600})
with Journal(path) as journal:
    assert all(key in journal for key in keys)
    assert all(journal.get(key)["text"] for key in keys[:: max(1, count // 1000)])
"""


if __name__ == "__main__":
    main()
