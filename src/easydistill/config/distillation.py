"""The `distillation` section: how the student learns from the teacher's distributions.

Which keys it has beside these depends on `distillation_type`: a loss's own parameters stand in the loss's own file.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from easydistill.config.base import PositiveFloat, PositiveInt, Section, Share


class DistillationConfig(Section):
    """Total loss = (1 − kd_ratio) · cross-entropy + kd_ratio · temperature² · divergence, a mean over answer tokens."""

    linear_in_teacher: ClassVar[bool] = False
    """Whether the loss is linear in the teacher's probabilities, so that drawn signals leave it unbiased."""
    by_rank: ClassVar[bool] = False
    """Whether probabilities are compared by rank instead of by token."""
    needs_student_answers: ClassVar[bool] = False
    """Whether the student's own answers, scored by the teacher, are part of the loss."""

    distillation_type: str
    """Which divergence; its parameters are keys beside it."""
    kd_ratio: Share = 0.5
    """Share of the divergence in the loss; the rest is cross-entropy on the labels."""
    max_seq_length: PositiveInt | None = None
    """Longest row, in tokens; by default `training.max_length`."""
    temperature: PositiveFloat = 1.0
    """Both distributions are softened by it. The teacher's signals are computed at this temperature."""
    tail: Literal["bucket", "renormalise_teacher", "ignore"] = "bucket"
    """What becomes of the mass outside the listed tokens: one more outcome; given to the listed; left out."""
    align: Literal["none", "bytes"] = "none"
    """`bytes`: the teacher has another tokenizer, and its tokens are matched with the student's by their bytes."""
