"""Extends chains of thought (paper, 2.1.1; "short2long"): same answer, with every step explained."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.config.base import PositiveFloat
from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import Sample
from easydistill.synthesis.rewriting import REASONS, RewritingConfig, rewrite
from easydistill.synthesis.tools import Tools

STAGE = "cot_short2long"
IDENTITY = "cot_extension"
"""Its name in fingerprints: that of earlier versions, so that finished runs stay finished."""
SUMMARY = "Every chain of thought made longer, with the same answer."
PROMPTS = (STAGE,)
LABELLED = True
MAKES_PROMPTS = False
__all__ = ["LABELLED", "MAKES_PROMPTS", "PROMPTS", "REASONS", "Config", "run"]


class Config(RewritingConfig):
    """How long a new chain must be."""

    identity_name = "operator.cot_extension"

    ratio: PositiveFloat = 1.3
    """Minimum length in words of the new chain, as a multiple of the old one's."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Lengthen each row's chain of thought."""
    return (yield from rewrite(STAGE, config, rows, tools, "at_least"))
