"""Evaluators: one metric a file. A file's name is the metric's name in `summary.json`.

A module offers `Metric`, a class with `kind` ("tokens" or "answers"), `needs_teacher`, `update(...)` and `value()`;
see `contracts/metric.py`. Metrics of kind "tokens" compare distributions over the tokens of the teacher's answers; metrics of
kind "answers" compare generated texts.
"""

from easydistill.registry import Registry

METRICS = Registry("metrics", __name__)
