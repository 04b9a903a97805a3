"""Short chains of thought made long (paper, 2.1.1; "short2long"): every step explained, the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.config.base import PositiveFloat
from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import Sample
from easydistill.synthesis.rewriting import REASONS, RewritingConfig, rewrite
from easydistill.synthesis.tools import Tools

STAGE = "cot_short2long"
IDENTITY = "cot_extension"
"""What fingerprints call it: its name in earlier versions, so that finished runs stay finished."""
SUMMARY = "Every chain of thought made longer, with the same answer."
PROMPTS = (STAGE,)
LABELLED = True
MAKES_PROMPTS = False
__all__ = ["LABELLED", "MAKES_PROMPTS", "PROMPTS", "REASONS", "Config", "run"]


class Config(RewritingConfig):
    """How long a chain must become."""

    identity_name = "operator.cot_extension"

    ratio: PositiveFloat = 1.3
    """Shortest new chain, as a multiple of the old one's words."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Lengthen each row's chain of thought."""
    return (yield from rewrite(STAGE, config, rows, tools, "at_least"))
