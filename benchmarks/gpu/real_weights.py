"""The quickstart's job with its real weights: seconds of its stages; seconds until its held-out KL divergence is 1.8,
beside TRL's trainers (`benchmarks.time_to_kl`, where the comparison is described).

    python -m benchmarks.gpu.run --parts real_weights
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples/quickstart/quickstart.json"


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """The job, twice if there is time (the first has a cold start), and the race."""
    ends = time.monotonic() + budget_seconds
    found: dict[str, Any] = {"quickstart": [] if tiny else [_quickstart()]}
    found["time_to_kl"] = _race(max(60.0, ends - time.monotonic()), tiny)
    if not tiny and time.monotonic() + 40 < ends:
        found["quickstart"].append(_quickstart())
    return found


def _quickstart() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "easydistill",
            "run",
            str(QUICKSTART),
            "--quiet",
            "--set",
            f"output_dir={folder}",
        ]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        seconds = round(time.monotonic() - started, 1)
        if done.returncode:
            return {"failed": done.stderr[-2000:]}
        manifests = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("stages/*/manifest.json"))]
        stages = {manifest["stage"]: round(manifest["seconds"], 2) for manifest in manifests}
        (metrics,) = Path(folder).glob("stages/*evaluate/metrics.json")
        after = json.loads(metrics.read_text())
        return {"seconds": seconds, "stages": stages, "metrics": after}


def _race(seconds: float, tiny: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.time_to_kl.run", "--json", "--seconds", "120", *["--tiny"] * tiny]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        return {"failed": f"still running after {seconds:.0f} s", "output": str(late.stdout)[-2000:]}
    line = next((text for text in reversed(done.stdout.splitlines()) if text.startswith('{"target"')), None)
    if done.returncode or line is None:
        return {"failed": done.stderr[-2000:], "output": done.stdout[-1000:]}
    found: dict[str, Any] = json.loads(line)
    return found
