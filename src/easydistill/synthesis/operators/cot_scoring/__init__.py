"""Scores chains of thought (OmniThought; paper, 2.1.1): reasoning verbosity RV, cognitive difficulty CD, correctness.

If a row has a reference answer in a field of its own, verification against it replaces the judge's correctness. The
judge is shown all images of a row, where they stand in the problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from easydistill.contracts.operator import Ask, OperatorConfig, Result, Steps
from easydistill.data.records import Sample
from easydistill.synthesis.chains import REFERENCES, known_answer, thought_of, verify
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.scoring import distribution, score_rows
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import find_answer

STAGE = "cot_scoring"
SUMMARY = "Every chain of thought gets scores for verbosity, difficulty and correctness."
PROMPTS = (STAGE,)
REASONS = ("truncated", "malformed_score")
LABELLED = True
MAKES_PROMPTS = False
SHOWS_IMAGES = ("judge",)
SCORES = {"rv": (0, 9), "cd": (0, 9), "correct": (0, 1)}


class Config(OperatorConfig):
    """How chains of thought are judged."""

    identity_name = "operator.cot_scoring"

    check_references: bool = True
    """If a row has a reference answer, `correct` is whether the chain's final answer equals it."""


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Score each row: `rv`, `cd` 0–9 and `correct` 0 or 1, in `meta`."""

    def question(row: Sample) -> Ask:
        text = prompt_text(row)
        return ask_about(tools, STAGE, row, wants=SCORES, role="judge", instruction=text, thought=thought_of(row))

    result = yield from score_rows(STAGE, config, rows, SCORES, question)
    if config.check_references:
        _check(result)
    return result


def _check(result: Result) -> None:
    """Replace the judge's `correct` with the result of verification, where there is one."""
    checked = agreed = 0
    rows = list(result.accepted)
    verdicts = verify([_final_answers(row) for row in rows])
    for number, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        if verdict is None or verdict.outcome == "undecided":
            continue
        checked += 1
        agreed += verdict.equal == bool(row.meta["correct"])
        meta = {**row.meta, "correct": int(verdict.equal), "correct_by": "verification"}
        rows[number] = replace(row, meta=meta)
    result.accepted = rows
    result.facts["scores"] = distribution(result.accepted, SCORES)
    result.facts["verified"] = checked
    result.facts["judge_agrees"] = round(agreed / checked, 4) if checked else None


def _final_answers(row: Sample) -> tuple[str, str] | None:
    """The (known, found) final answers, if the row has a reference answer and states one itself."""
    if all(row.meta.get(name) is None for name in REFERENCES):
        return None
    known, found = known_answer(row), find_answer(row.answer or "")
    return None if known is None or found is None else (known, found.text)
