"""Metrics: one a file. A file's name is the metric's name in `evaluation.metrics` and in `summary.json`.

A module declares what `contracts.metric.MetricModule` says: `Metric`, a class of kind "tokens" or "answers".
"""

from easydistill.contracts.metric import METRIC
from easydistill.registry import Registry

METRICS = Registry("metrics", __name__, METRIC)
