"""Shortens chains of thought (paper, 2.1.1; "long2short"): same answer, without repetitions and detours."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.config.base import PositiveShare
from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import Sample
from easydistill.synthesis.rewriting import REASONS, RewritingConfig, rewrite
from easydistill.synthesis.tools import Tools

STAGE = "cot_long2short"
IDENTITY = "cot_simplification"
"""Its name in fingerprints: that of earlier versions, so that finished runs stay finished."""
SUMMARY = "Every chain of thought made shorter, with the same answer."
PROMPTS = (STAGE,)
LABELLED = True
MAKES_PROMPTS = False
__all__ = ["LABELLED", "MAKES_PROMPTS", "PROMPTS", "REASONS", "Config", "run"]


class Config(RewritingConfig):
    """How short a new chain must be."""

    identity_name = "operator.cot_simplification"

    ratio: PositiveShare = 0.7
    """Maximum length in words of the new chain, as a share of the old one's."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Shorten each row's chain of thought."""
    return (yield from rewrite(STAGE, config, rows, tools, "at_most"))
