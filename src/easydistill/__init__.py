"""EasyDistill: one config names a teacher, a student and seed data; one call trains the student.

    import easydistill
    result = easydistill.run("kd.json")          # or a dict
    print(result.student, result.metrics["after"])

Importing this package loads no heavy library; `run` does, in the backend that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from easydistill.api import RunResult, compare, plan, preview, result, retry, run, validate

__version__ = "0.2.0"
__all__ = ["RunResult", "__version__", "compare", "plan", "preview", "result", "retry", "run", "validate"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from easydistill import api

        return getattr(api, name)
    raise AttributeError(f"module 'easydistill' has no attribute {name!r}")
