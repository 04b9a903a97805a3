"""What losses receive, and the sums they share.

An outcome is a token, or all unlisted tokens together. Teacher and student come as log-weights over the same M
outcomes of a row. Both sum to one where the outcomes cover the vocabulary (with a bucket, or all tokens); a teacher's
drawn or truncated weights, and a student without a bucket, may not. −inf is an outcome of weight zero.

Shapes: N rows (one a token), M outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from easydistill.config.base import PositiveFloat, PositiveInt, Section, Share
from easydistill.config.extensions import names_itself
from easydistill.registry import Contract

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Outcomes:
    """What the columns of a row are."""

    has_bucket: bool = False
    """Whether the last column is the mass of all unlisted tokens."""
    student_wrote_N: Tensor | None = None
    """bool: rows of answers that the student wrote itself; None if there are none."""


def expected_ratio(first_NM: Tensor, second_NM: Tensor) -> Tensor:
    """Σ_m exp(first) · (first − second), [N]; outcomes to which `first` gives no weight contribute nothing.

    KL(first ‖ second) where both are log-probabilities. Gradients flow through both.
    """
    none_NM = first_NM.isneginf()
    first_NM = first_NM.masked_fill(none_NM, 0.0)
    ratio_NM = first_NM - second_NM.masked_fill(none_NM, 0.0)
    return (first_NM.exp() * ratio_NM).masked_fill(none_NM, 0.0).sum(-1)


def mixture(first_NM: Tensor, second_NM: Tensor, share: float) -> Tensor:
    """log(share · exp(first) + (1 − share) · exp(second)); −inf where both are.

    Raises:
        ValueError: the share is not strictly between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"a mixture needs a share strictly between 0 and 1, not {share}")
    from math import log

    neither_NM = first_NM.isneginf() & second_NM.isneginf()
    mixed_NM = (first_NM.masked_fill(neither_NM, 0.0) + log(share)).logaddexp(
        second_NM.masked_fill(neither_NM, 0.0) + log(1 - share)
    )
    return mixed_NM.masked_fill(neither_NM, float("-inf"))


class DistillationConfig(Section):
    """Total loss = (1 − kd_ratio) · cross-entropy + kd_ratio · temperature² · divergence, a mean over answer tokens."""

    linear_in_teacher: ClassVar[bool] = False
    """Whether the loss is linear in the teacher's probabilities, so that sampled signals leave it unbiased."""
    by_rank: ClassVar[bool] = False
    """Whether probabilities are compared by rank instead of by token."""
    needs_student_answers: ClassVar[bool] = False
    """Whether the student's own answers, scored by the teacher, are part of the loss."""

    distillation_type: str
    """The divergence; its parameters are keys beside it."""
    kd_ratio: Share = 0.5
    """Share of the loss that is the divergence from the teacher's probabilities; the rest is fine-tuning on its answers
    (cross-entropy). 0 is fine-tuning alone."""
    max_seq_length: PositiveInt | None = None
    """Longest row, in tokens; defaults to `training.max_length`."""
    temperature: PositiveFloat = 1.0
    """Above 1, the probabilities of both models are evened out before they are compared, below 1 sharpened. What is
    stored of the teacher is computed with it."""
    tail: Literal["bucket", "renormalise_teacher", "ignore"] = "bucket"
    """What becomes of the probability of tokens that are not stored: `bucket` treats all of them as one more token,
    `renormalise_teacher` gives it to the stored ones, `ignore` leaves it out."""
    align: Literal["none", "answers", "bytes"] = "none"
    """How the teacher's tokens are matched with the student's. `none`: both read the same tokens. `answers`: both have
    one vocabulary, but the teacher reads chats in its own template, or images in its own way; the answers must be the
    same tokens to both. `bytes`: they have different tokenizers, and tokens are matched by the text that they stand
    for."""


class WholeMassConfig(DistillationConfig):
    """The config of a loss for which the mass outside the listed tokens counts."""

    tail: Literal["bucket"] = "bucket"
    """All tokens that are not stored are treated as one more token. This loss has no other choice: without it, the
    student could put probability there and pay nothing for it."""


class LossModule(Protocol):
    """A module registered as a loss. It loads no torch when it is imported."""

    Config: type[DistillationConfig]
    """Its parameters, with a field `distillation_type` of the type Literal["<its name>"]."""

    def divergence(
        self, config: DistillationConfig, teacher_NM: Tensor, student_NM: Tensor, outcomes: Outcomes
    ) -> Tensor:
        """The divergence of each row, [N], in nats: a pure function of log-probabilities."""


def _check(name: str, module: ModuleType) -> list[str]:
    return names_itself(name, module.Config, "distillation_type")


LOSS = Contract(LossModule, check=_check)
