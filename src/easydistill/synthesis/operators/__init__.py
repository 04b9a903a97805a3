"""Synthesis operators: one a file, named as jobs name them.

A module offers `Config`, a section with the operator's own parameters, and `run(config, rows, tools) -> Steps[Result]`;
see `contracts/operator.py`. Where its config names files, `files(config)` tells them by key: they must be there before a run.
An operator whose accepted rows are pairs of answers says `PAIRS = True`: a row ends with the chosen answer, and its
`meta["rejected"]` is the other one, a message. One that makes rows of more than one kind names the others in `ALSO`.
"""

from __future__ import annotations

from easydistill.registry import Registry

OPERATORS = Registry("operators", __name__)


def rejection_reasons() -> set[str]:
    """Every reason for which an operator may reject a candidate."""
    return {reason for name in OPERATORS.names() for reason in OPERATORS.module(name).REASONS}
