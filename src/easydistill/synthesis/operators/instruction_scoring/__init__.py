"""Scores instructions, with or without answers, for their value as training data (paper, 2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.contracts.operator import Ask, OperatorConfig, Result, Steps
from easydistill.data.messages import said
from easydistill.data.records import Sample
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.scoring import score_rows
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools

STAGE = "instruction_scoring"
SUMMARY = "Every instruction gets scores for its value as training data."
PROMPTS = (STAGE,)
REASONS = ("truncated", "malformed_score")
LABELLED = None
MAKES_PROMPTS = False
SHOWS_IMAGES = ("judge",)
SCORES = {"informativeness": (0, 9), "helpfulness": (0, 9), "generalisation": (0, 9), "correctness": (0, 1)}


class Config(OperatorConfig):
    """How instructions are scored."""

    identity_name = "operator.instruction_scoring"


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Score each row: informativeness, helpfulness, generalisation 0–9, correctness 0 or 1, in `meta`."""

    def question(row: Sample) -> Ask:
        text = prompt_text(row)
        answer = None if row.answer is None else said(row.messages[-1])
        return ask_about(tools, STAGE, row, wants=SCORES, role="judge", instruction=text, answer=answer)

    return (yield from score_rows(STAGE, config, rows, SCORES, question))
