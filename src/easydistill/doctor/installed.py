"""Versions of libraries, extras that are missing, extensions that cannot be used. Imports none of the libraries."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

from easydistill.doctor.finding import Finding
from easydistill.engine.run_directory import package_versions
from easydistill.jobs import JOBS

SECTION = "installed"
EXTRAS = (
    ("train", ("torch", "transformers", "accelerate", "peft", "gguf", "rapidfuzz")),
    ("trl", ("trl",)),
    ("synth", ("rensa", "rapidfuzz", "math_verify", "selectolax", "pypdf")),
    ("vllm", ("vllm",)),
    ("images", ("PIL",)),
    ("optim", ("torchao", "bitsandbytes")),
    ("eval", ("lm_eval", "langdetect", "immutabledict", "nltk")),
)
"""Extra → the modules that it brings."""


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def installed() -> Iterator[Finding]:
    """What is installed, and whether it can be used."""
    from easydistill.evaluation.metrics import METRICS
    from easydistill.losses import LOSSES
    from easydistill.rewards import REWARDS
    from easydistill.synthesis.operators import OPERATORS
    from easydistill.tasks import TASKS

    yield Finding(SECTION, "python", sys.version.split()[0], sys.version_info >= (3, 11))
    for name, version in package_versions().items():
        yield Finding(SECTION, name, version)
    for extra, modules in EXTRAS:
        missing = [module for module in modules if not is_installed(module)]
        state = f"missing: {', '.join(missing)}  (pip install 'easydistill-toolkit[{extra}]')"
        yield Finding(SECTION, f"extra {extra}", state if missing else "installed", not missing)
    for registry in (JOBS, OPERATORS, LOSSES, REWARDS, METRICS, TASKS):
        for name, problem in sorted(registry.unusable().items()):
            yield Finding(SECTION, f"{registry.kind}: {name}", problem, good=False)
