"""Metrics, one per file. The file's name is the metric's name in `evaluation.metrics` and in `summary.json`.

A module follows `contracts.metric.MetricModule`: it declares a class `Metric` of kind "tokens" or "answers".
"""

from easydistill.contracts.metric import METRIC
from easydistill.registry import Registry

METRICS = Registry("metrics", __name__, METRIC, f"{__name__}._function")
