"""The tests of the reference kernels, on the GPU's kernels: with small blocks, and with those that jobs use.

python -m benchmarks.gpu.run --parts exactness
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
TESTS = ("tests/unit/test_linear_cross_entropy.py", "tests/unit/test_linear_distillation.py")
MEANT_FOR_TORCH = ("test_nothing_as_large_as_all_logits_is_allocated",)
"""Its spy watches PyTorch's softmax."""


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """Tests passed and failed, and what failed."""
    if not torch.cuda.is_available():
        return {"skipped": "here is no GPU; `make test` runs the same tests in Triton's interpreter"}
    ends = time.monotonic() + budget_seconds
    found = {"small": _run("small", max(20.0, budget_seconds))}
    if time.monotonic() < ends:
        found["default"] = _run("default", max(20.0, ends - time.monotonic()))
    bad = [blocks for blocks, one in found.items() if one.get("exit_code", 1)]
    return {**found, **({"failed": f"with {' and '.join(bad)} blocks"} if bad else {})}


def _run(blocks: str, seconds: float) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.support.on_gpu",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
    ]
    command += [
        "-rfE",
        "--tb=short",
        "-k",
        f"not {' and not '.join(MEANT_FOR_TORCH)}",
        "-n",
        "12",
        "--timeout=120",
        *TESTS,
    ]
    environment = os.environ | {"EASYDISTILL_TEST_BLOCKS": blocks}
    started = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"late": f"still running after {seconds:.0f} s"}
    found: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1), "exit_code": done.returncode}
    found |= {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    if done.returncode:
        found["errors"] = sorted(set(re.findall(r"^E  +(.{1,300})$", done.stdout, re.MULTILINE)))[:20]
        found["output"] = done.stdout[-3000:] + done.stderr[-1500:]
    return found
