"""Shortens chains of thought (paper, 2.1.1; "long2short"): same answer, without repetitions and detours."""

from __future__ import annotations

from functools import partial

from easydistill.config.base import PositiveShare
from easydistill.synthesis.rewriting import REASONS, RewritingConfig, rewrite

STAGE = "cot_long2short"
IDENTITY = "cot_simplification"
"""Its name in fingerprints: that of earlier versions, so that finished runs stay finished."""
SUMMARY = "Every chain of thought made shorter, with the same answer."
PROMPTS = (STAGE,)
LABELLED = True
MAKES_PROMPTS = False
SHOWS_IMAGES = ("teacher",)
__all__ = ["LABELLED", "MAKES_PROMPTS", "PROMPTS", "REASONS", "SHOWS_IMAGES", "Config", "run"]


class Config(RewritingConfig):
    """How short a new chain must be."""

    identity_name = "operator.cot_simplification"

    ratio: PositiveShare = 0.7
    """Maximum length in words of the new chain, as a share of the old one's."""


run = partial(rewrite, STAGE, limit="at_most")
"""Shorten each row's chain of thought."""
