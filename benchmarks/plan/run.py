"""`plan`'s memory and disk against what runs take, for the trainings of `configs.py`.

Each is run in a process of its own, for two steps. The run keeps each stage's peak of resident memory (`usage.json`);
the disk is looked at every half second, for checkpoints are removed at the end. What was measured stays in
`results/measured.json`; `--compare` plans each training anew and sets the two side by side.

    python -m benchmarks.plan.run [--only sft,dpo] [--students smollm,small] [--compare]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import save
from benchmarks.plan.configs import CONFIGS, STUDENTS

RESULTS = Path(__file__).parent / "results" / "measured.json"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def measured(name: str, student: str, folder: Path) -> dict[str, Any]:
    """What a training takes."""
    config = _written(name, student, folder)
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
    stages = {
        usage.parent.name.partition("-")[2]: json.loads(usage.read_text())["peak_memory_bytes"]
        for usage in sorted((folder / "run" / "stages").glob("*/usage.json"))
    }
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": stages,
        "peak_disk_bytes": most,
    }


def compared(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of each training that was measured: what is planned, what it took, and the ratio."""
    from easydistill import api

    for key, found in results.items():
        name, student = key.split()
        with tempfile.TemporaryDirectory() as folder:
            planned = {stage.name: stage.estimate for stage in api.plan(_written(name, student, Path(folder)))}
        disk = sum(estimate.disk_bytes or 0 for estimate in planned.values())
        for stage, peak in found["peak_memory_bytes"].items():
            memory = planned[stage].memory_bytes
            yield _side_by_side(f"{key}: memory of {stage}", memory, peak)
        if found["peak_disk_bytes"] is not None:
            yield _side_by_side(f"{key}: disk", disk, found["peak_disk_bytes"])


def _side_by_side(what: str, planned: int | None, taken: int) -> dict[str, Any]:
    ratio = None if planned is None else round(planned / taken, 3)
    return {"what": what, "planned": planned, "taken": taken, "ratio": ratio}


def _written(name: str, student: str, folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIGS[name](folder, student) | {"output_dir": str(folder / "run")}))
    return path


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
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text())["trainings"] if RESULTS.is_file() else {}
    if not arguments.compare:
        for student in arguments.students.split(","):
            for name in arguments.only.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    results[f"{name} {student}"] = measured(name, student, Path(folder))
                print(name, student, results[f"{name} {student}"], flush=True)
                save(Path(__file__).parent, "measured", {"trainings": results})
    rows = []
    for row in compared(results):
        rows.append(row)
        print(row["what"], row["planned"], row["taken"], row["ratio"], flush=True)
    save(Path(__file__).parent, "compared", {"comparisons": rows})


if __name__ == "__main__":
    main()
