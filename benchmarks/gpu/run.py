"""Everything that only a GPU can show, in one run of about ten minutes on one card.

Each part is a module beside this one with a function `measure(budget_seconds, tiny)`, and runs in a process of its own:
its peak memory is its own, and a part that fails or overruns its budget takes no other part's results with it. Results
are saved after every part, with the card's name and the versions.

    python -m benchmarks.gpu.run [--parts kernels,training] [--seconds 570] [--out DIR]
    python -m benchmarks.gpu.run --tiny      the same code on small shapes, on whatever device there is
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULT, save

HERE = Path(__file__).parent
PARTS = {
    "exactness": 2,
    "kernels": 3,
    "training": 5,
    "real_weights": 4,
    "scoring": 2,
    "generation": 3,
    "determinism": 3,
    "profiled": 1,
    "capture": 3,
    "on_policy": 2,
}
"""Part → its share of the time, in the order in which they run."""


def card() -> dict[str, Any]:
    """The device and what drives it."""
    import torch

    if not torch.cuda.is_available():
        return {"name": "none", "torch": torch.__version__}
    about = torch.cuda.get_device_properties(0)
    return {
        "name": about.name,
        "gib": round(about.total_memory / 2**30, 1),
        "multiprocessors": about.multi_processor_count,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }


def run_part(name: str, seconds: float, *, tiny: bool) -> dict[str, Any]:
    """One part in a process of its own: what it measured, or why it ended without a result."""
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--part", name, "--seconds", str(seconds)]
    started = time.monotonic()
    try:
        # A part plans its work within its budget; the rest is for what it has already begun.
        done = subprocess.run(
            command + ["--tiny"] * tiny, capture_output=True, text=True, check=False, timeout=seconds * 1.5 + 30
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"still running after {seconds * 1.5 + 30:.0f} s"}
    line = next((text for text in reversed(done.stdout.splitlines()) if text.startswith(RESULT)), None)
    if line is None:
        return {"failed": done.stderr[-3000:], "exit_code": done.returncode}
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return {"wall_seconds": round(time.monotonic() - started, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder that gets results/gpu.json")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any device")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        module = importlib.import_module(f"benchmarks.gpu.{arguments.part}")
        print(RESULT + json.dumps(module.measure(arguments.seconds, tiny=arguments.tiny)))
        return
    ends = time.monotonic() + arguments.seconds
    parts = [name for name in arguments.parts.split(",") if name]
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    results: dict[str, Any] = {"card": card(), "tiny": arguments.tiny, "parts": {}}
    failed = False
    for at, name in enumerate(parts):
        left = max(10.0, ends - time.monotonic())
        share = PARTS[name] / sum(PARTS[each] for each in parts[at:])
        print(f"{name}: {left * share:.0f} s", flush=True)
        found = run_part(name, left * share, tiny=arguments.tiny)
        failed |= "failed" in found
        results["parts"][name] = found
        path = save(arguments.out, "tiny" if arguments.tiny else "gpu", results)
        print(json.dumps(found, indent=2), flush=True)
    print(f"saved in {path}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
