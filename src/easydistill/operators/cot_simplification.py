"""Long chains of thought made short (paper, 2.1.1; "long2short"): the answer stays, repetitions and detours go."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.config.base import PositiveShare
from easydistill.data.records import Sample
from easydistill.operators._base import Result, Steps
from easydistill.operators._rewriting import REASONS, RewritingConfig, rewrite
from easydistill.operators._tools import Tools

STAGE = "cot_simplification"
PROMPTS = (STAGE,)
LABELLED = True
MAKES_PROMPTS = False
__all__ = ["LABELLED", "MAKES_PROMPTS", "PROMPTS", "REASONS", "Config", "run"]


class Config(RewritingConfig):
    """How short a chain must become."""

    identity_name = "operator.cot_simplification"

    ratio: PositiveShare = 0.7
    """Longest new chain, as a share of the old one's words."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Shorten each row's chain of thought."""
    return (yield from rewrite(STAGE, config, rows, tools, "at_most"))
