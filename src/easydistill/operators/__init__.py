"""Synthesis operators: one a file, named as jobs name them.

A module offers `Config`, a section with the operator's own parameters, and `run(config, rows, tools) -> Steps[Result]`;
see `_base.py`. Where its config names files, `files(config)` tells them by key: they must be there before a run.
"""

from __future__ import annotations

from easydistill.registry import Registry

OPERATORS = Registry("operators", __name__)
