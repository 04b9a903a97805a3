"""Evaluators: one metric a file. A file's name is the metric's name in `summary.json`.

A module offers `Metric`, a class with `kind` ("tokens" or "answers"), `needs_teacher`, `update(...)` and `value()`;
see `_base.py`. Metrics of kind "tokens" compare distributions over the tokens of the teacher's answers; metrics of
kind "answers" compare generated texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easydistill.registry import Registry

METRICS = Registry("metrics", __name__)
UNNAMED = frozenset({"agreement", "cross_entropy", "kl", "rouge_l"})
"""Measured by every evaluation from before fingerprints named metrics; they are left out, so that it stays done."""


def metrics_identity(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is measured, for an evaluation's fingerprint: empty where it is the `UNNAMED` ones as they have always been.

    Args:
        measured: the identity of each metric's parameters, by the metric's name.
    """
    named = {name: dict(parameters) for name, parameters in measured.items() if parameters or name not in UNNAMED}
    return named | dict.fromkeys(UNNAMED - measured.keys())
