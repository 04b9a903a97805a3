"""Extends chains of thought (paper, 2.1.1; "short2long"): same answer, with every step explained."""

from __future__ import annotations

from functools import partial

from easydistill.config.base import PositiveFloat
from easydistill.synthesis.rewriting import REASONS, RewritingConfig, rewrite

STAGE = "cot_short2long"
IDENTITY = "cot_extension"
"""Its name in fingerprints: that of earlier versions, so that finished runs stay finished."""
SUMMARY = "Every chain of thought made longer, with the same answer."
PROMPTS = (STAGE,)
LABELLED = True
MAKES_PROMPTS = False
SHOWS_IMAGES = ("teacher",)
__all__ = ["LABELLED", "MAKES_PROMPTS", "PROMPTS", "REASONS", "SHOWS_IMAGES", "Config", "run"]


class Config(RewritingConfig):
    """How long a new chain must be."""

    identity_name = "operator.cot_extension"

    ratio: PositiveFloat = 1.3
    """Minimum length in words of the new chain, as a multiple of the old one's."""


run = partial(rewrite, STAGE, limit="at_least")
"""Lengthen each row's chain of thought."""
