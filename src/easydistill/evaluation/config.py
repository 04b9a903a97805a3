"""The `evaluation` section of jobs that measure a student: what `config.evaluation` holds, and which metrics.

The section's class, with a key for every registered metric, is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import Field, create_model, model_validator

from easydistill.config.base import Unfit
from easydistill.config.evaluation import EvaluationConfig
from easydistill.contracts._sections import NamedSections, section_of
from easydistill.contracts.metric import MetricConfig
from easydistill.evaluation.metrics import METRICS

UNNAMED = frozenset({"agreement", "cross_entropy", "kl", "rouge_l"})
"""Measured by every evaluation from before fingerprints named metrics; they are left out, so that it stays done."""


class MetricsConfig(NamedSections):
    """Metrics by name, each with its own keys."""

    @model_validator(mode="after")
    def _measures_something(self) -> MetricsConfig:
        if not self.chosen():
            known = ", ".join(type(self).model_fields)
            raise Unfit("there is no metric", f'name at least one of {known}, such as {{"kl": {{}}}}')
        return self


@cache
def evaluation_section() -> Any:
    """The type of a job's `evaluation` section."""
    metrics = section_of(METRICS, MetricsConfig, MetricConfig, "MetricsSection", __name__)
    description = "Which metrics, each with its own keys; by default all that are installed."
    fields: Any = {"metrics": (metrics | None, Field(default=None, description=description))}
    made = create_model(
        "EvaluationSection", __base__=EvaluationConfig, __module__=__name__, __doc__=EvaluationConfig.__doc__, **fields
    )
    # What is measured enters fingerprints as `metrics_identity`.
    made.runtime_only = EvaluationConfig.runtime_only | {"metrics"}
    return made


def chosen_metrics(config: EvaluationConfig) -> dict[str, MetricConfig]:
    """The metrics that are measured, by name."""
    section = getattr(config, "metrics", None)
    if section is not None:
        found: dict[str, MetricConfig] = section.chosen()
        return found
    return {name: module.Config() for name, module in METRICS.loaded().items()}


def answer_names(metrics: Iterable[str]) -> list[str]:
    """Those of the metrics that score generated answers."""
    return [name for name in metrics if METRICS.module(name).Metric.kind == "answers"]


def metrics_identity(measured: Mapping[str, MetricConfig]) -> dict[str, Any]:
    """What is measured, for an evaluation's fingerprint: empty where it is the `UNNAMED` metrics as ever."""
    identities = {name: config.identity() for name, config in measured.items()}
    named = {name: identity for name, identity in identities.items() if identity or name not in UNNAMED}
    return named | dict.fromkeys(UNNAMED - measured.keys())
