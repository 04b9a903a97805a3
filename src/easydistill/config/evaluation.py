"""The `evaluation` section: what is measured on prompts that the student never trains on."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from easydistill.config.base import NonNegativeFloat, PositiveInt, Section, share_or_count


class HeldoutConfig(Section):
    """Rows held out of training, on which the student is measured before and after it."""

    enabled: bool = True
    """Hold out rows and evaluate on them."""
    heldout: Annotated[NonNegativeFloat, AfterValidator(share_or_count)] = 0.05
    """Rows held out of training: a share below 1, or a number of rows."""
    max_heldout: PositiveInt = 200
    """Most rows to hold out when `heldout` is a share."""


class EvaluationConfig(HeldoutConfig):
    """Held-out evaluation of the student, before and after training."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    generate: bool = True
    """Generate answers to the held-out prompts, for ROUGE-L and the report's side-by-side answers."""
    max_new_tokens: PositiveInt = 128
    """Longest generated answer, in tokens."""
    batch_size: PositiveInt = 16
    """Rows evaluated in one batch."""
