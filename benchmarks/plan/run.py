"""`plan`'s memory and disk against what runs take, for the trainings of `configs.py`.

Each is planned, then run in a process of its own, for two steps. The run keeps each stage's peak of resident memory
(`usage.json`); the disk is looked at every half second, for checkpoints are removed at the end.

    python -m benchmarks.plan.run [--only sft,dpo] [--students smollm,small] [--json]
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

from benchmarks.common import save  # noqa: F401
from benchmarks.plan.configs import CONFIGS, STUDENTS

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def measured(name: str, student: str, folder: Path) -> dict[str, Any]:
    """What is planned and what is taken, of one training."""
    config = folder / "config.json"
    config.write_text(json.dumps(CONFIGS[name](folder, student) | {"output_dir": str(folder / "run")}))
    planned = json.loads(_command("plan", str(config), "--json"))
    started, most = time.monotonic(), 0
    with (folder / "out.txt").open("w") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", "easydistill", "run", str(config)],
            env={**os.environ, **ENVIRONMENT},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        while run.poll() is None:
            most = max(most, _disk(folder / "run"))
            time.sleep(0.5)
    if run.returncode:
        raise SystemExit(f"{name} {student}: {(folder / 'out.txt').read_text()[-2000:]}")
    stages: dict[str, Any] = {}
    for usage in sorted((folder / "run" / "stages").glob("*/usage.json")):
        stages[usage.parent.name.partition("-")[2]] = json.loads(usage.read_text())
    return {
        "config": name,
        "student": student,
        "seconds": round(time.monotonic() - started, 1),
        "planned": planned,
        "stages": stages,
        "disk_peak_bytes": most,
        "disk_end_bytes": _disk(folder / "run"),
    }


def _command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "easydistill", *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _disk(folder: Path) -> int:
    """Bytes of a folder's files, links to one counted once; those that vanish meanwhile are not counted."""
    sizes: dict[int, int] = {}
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CONFIGS))
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for student in arguments.students.split(","):
        for name in arguments.only.split(","):
            with tempfile.TemporaryDirectory() as folder:
                found = measured(name, student, Path(folder))
            results.append(found)
            print(
                name,
                student,
                f"{found['seconds']} s",
                {n: u["peak_memory_bytes"] for n, u in found["stages"].items()},
                found["planned"]["total"].get("memory_bytes"),
                found["disk_peak_bytes"],
                found["planned"]["total"].get("disk_bytes"),
                flush=True,
            )
    (Path(__file__).parent / "results" / "raw.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
