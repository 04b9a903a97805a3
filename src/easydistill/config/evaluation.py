"""The `evaluation` section: what is measured on prompts that were never trained on."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from easydistill.config.base import NonNegativeFloat, PositiveInt, Section, share_or_count


class HeldoutConfig(Section):
    """Rows held out of training, for figures of the student before and after it."""

    enabled: bool = True
    """Hold rows out and measure on them."""
    heldout: Annotated[NonNegativeFloat, AfterValidator(share_or_count)] = 0.05
    """Rows held out of training: a share below 1, or a number of rows."""
    max_heldout: PositiveInt = 200
    """Most rows a share may hold out."""


class EvaluationConfig(HeldoutConfig):
    """Held-out evaluation of the student, before and after training."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    generate: bool = True
    """Let the student answer the held-out prompts (for ROUGE-L and the report's side-by-side answers)."""
    max_new_tokens: PositiveInt = 128
    """Longest answer generated for ROUGE-L, in tokens."""
    batch_size: PositiveInt = 16
    """Rows evaluated together."""
