"""Divergences between teacher and student: one a file, named as `distillation.distillation_type` names it.

A module offers `Config`, a `DistillationConfig` with the loss's own parameters and a literal `distillation_type`, and

    divergence(config, teacher_NM, student_NM, outcomes) -> Tensor [N]

a pure function of log-probabilities over M matched outcomes of N tokens, in nats a token; see `contracts/loss.py` for what an
outcome is. Nothing here loads torch: the functions use the methods of the tensors they are given.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from easydistill.registry import Registry

LOSSES = Registry("losses", __name__)
DEFAULT = "forward_kld"


def _type_of(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("distillation_type", DEFAULT))
    return str(getattr(value, "distillation_type", DEFAULT))


def distillation_section() -> Any:
    """The type of a job's `distillation` section: the union of all losses' configs, told apart by their type."""
    members: Any = None
    for name in LOSSES.names():
        config: Any = LOSSES.module(name).Config
        tagged: Any = Annotated[config, Tag(name)]
        members = tagged if members is None else members | tagged
    section: Any = Annotated[members, Discriminator(_type_of)]
    return section
