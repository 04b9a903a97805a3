"""The `evaluation` section of jobs that measure a student: `config.evaluation`'s fields, and the choice of metrics.

The section's class has a key for every registered metric, so it is made on first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model, model_validator

from easydistill.config.base import Unfit
from easydistill.config.evaluation import EvaluationConfig
from easydistill.config.extensions import NamedSections, section_of
from easydistill.contracts.metric import MetricConfig
from easydistill.evaluation.metrics import METRICS
from easydistill.plain_files import short_names

UNNAMED = frozenset({"agreement", "cross_entropy", "kl", "rouge_l"})
"""Metrics from before fingerprints named them; they stay out of fingerprints, so that finished runs stay finished."""


class MetricsConfig(NamedSections):
    """Metrics by name, each with its own keys."""

    @model_validator(mode="after")
    def _measures_something(self) -> MetricsConfig:
        if not self.chosen():
            known = ", ".join(type(self).model_fields)
            raise Unfit("no metric is named", f'name at least one of {known}, such as {{"kl": {{}}}}')
        return self


def _section() -> Any:
    """The type of a job's `evaluation` section."""
    metrics = section_of(METRICS, MetricsConfig, MetricConfig, "MetricsSection", __name__)
    description = (
        "The metrics to measure, each with its own keys; by default all that are installed, but for `acceptance`, and "
        "for `exact_match` and `image_gain` of students that see no images."
    )
    fields: Any = {"metrics": (metrics | None, Field(default=None, description=description))}
    made = create_model(
        "EvaluationSection", __base__=EvaluationConfig, __module__=__name__, __doc__=EvaluationConfig.__doc__, **fields
    )
    # The metrics enter fingerprints through `metrics_identity`.
    made.runtime_only = EvaluationConfig.runtime_only | {"metrics"}
    return made


if TYPE_CHECKING:
    EvaluationSection = EvaluationConfig
else:
    EvaluationSection = _section()


def chosen_metrics(config: EvaluationConfig, *, sees_images: bool = False) -> dict[str, MetricConfig]:
    """The metrics to measure, by name.

    Args:
        sees_images: whether the student does; by default some metrics are measured of such students alone.
    """
    section = getattr(config, "metrics", None)
    if section is not None:
        found: dict[str, MetricConfig] = section.chosen()
        return found
    measured = ("always", "images") if sees_images else ("always",)
    return {name: module.Config() for name, module in METRICS.loaded().items() if module.MEASURED in measured}


def answer_names(metrics: Iterable[str]) -> list[str]:
    """Those of the metrics that score generated answers."""
    return _of_kind(metrics, "answers")


def image_names(metrics: Iterable[str]) -> list[str]:
    """Those of the metrics that compare what images change."""
    return _of_kind(metrics, "images")


def _of_kind(metrics: Iterable[str], kind: str) -> list[str]:
    return [name for name in metrics if METRICS.module(name).Metric.kind == kind]


def metrics_identity(measured: Mapping[str, MetricConfig]) -> dict[str, Any]:
    """The metrics, for an evaluation's fingerprint: empty if they are the `UNNAMED` ones with default parameters."""
    identities = {key: measured[name].identity() for name, key in short_names(list(measured)).items()}
    named = {name: identity for name, identity in identities.items() if identity or name not in UNNAMED}
    return named | dict.fromkeys(UNNAMED - measured.keys())
