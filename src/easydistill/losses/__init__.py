"""Divergences between teacher and student, one per file, which is named like its `distillation.distillation_type`.

A module declares what `contracts.loss.LossModule` says: `Config`, a `DistillationConfig` with the loss's own parameters
and a literal `distillation_type`, and

    divergence(config, teacher_NM, student_NM, outcomes) -> Tensor [N]

a pure function of log-probabilities over M matched outcomes of N tokens, in nats per token. Nothing here loads torch:
the functions use the methods of the tensors they are given.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from easydistill.config.extensions import configs_of, or_in_a_file
from easydistill.contracts.loss import LOSS, DistillationConfig
from easydistill.registry import Registry

LOSSES = Registry("losses", __name__, LOSS, f"{__name__}._function", tag="distillation_type")
DEFAULT = "forward_kld"


def _type_of(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("distillation_type", DEFAULT))
    return str(getattr(value, "distillation_type", DEFAULT))


def distillation_section() -> Any:
    """The type of a job's `distillation` section: the union of all losses' configs, selected by `distillation_type`."""
    members: Any = None
    for name, config in configs_of(LOSSES, DistillationConfig).items():
        tagged: Any = Annotated[config, Tag(name)]
        members = tagged if members is None else members | tagged
    return or_in_a_file(Annotated[members, Discriminator(_type_of)], LOSSES)
