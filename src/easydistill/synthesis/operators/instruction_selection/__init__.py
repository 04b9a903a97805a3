"""Selects rows by a judge's scores of instruction and answer.

Scores are `meta["informativeness"]`, `meta["helpfulness"]` and `meta["generalisation"]`, 0–9, and
`meta["correctness"]`, 0 or 1 (the criteria of DistilQwen2.5).
"""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.config.base import Section
from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import Rejection, Sample, count_reasons
from easydistill.data.spool import like
from easydistill.synthesis.selection import NotScored, Score, score, verdict
from easydistill.synthesis.tools import Tools

STAGE = "instruction_selection"
SUMMARY = "Instructions chosen by their scores."
SCORES = ("informativeness", "helpfulness", "generalisation")
CORRECTNESS = "correctness"
"""Keys of a row's `meta` with its scores."""
PROMPTS: tuple[str, ...] = ()
REASONS = ("not_scored", "incorrect", *(f"low_{name}" for name in SCORES))
LABELLED = None
MAKES_PROMPTS = False
KEEPS_IMAGES = True


class Config(Section):
    """Minimum scores of a row. The defaults are from no publication: look at the distribution of your scores."""

    identity_name = "operator.instruction_selection"

    informativeness: Score = 5
    """Minimum score for how much there is to learn from the row."""
    helpfulness: Score = 5
    """Minimum score for how well the answer does what was asked."""
    generalisation: Score = 5
    """Minimum score for how far the row helps with other tasks."""
    correct_only: bool = True
    """Require that the answer was judged correct."""


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Keep rows whose scores reach the thresholds. Asks no model."""
    yield from ()
    return select(config, rows)


def select(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order."""
    result = Result(like(rows), like(rows), len(rows))
    for row in rows:
        problem = _problem(config, row)
        if problem is None:
            result.accepted.append(row)
        else:
            result.rejected.append(Rejection(row.id, STAGE, *problem, 1, list(row.messages)))
    result.facts = {"kept": len(result.accepted), "dropped": count_reasons(result.rejected)}
    return result


def _problem(config: Config, row: Sample) -> tuple[str, str] | None:
    """Why a row is rejected, as (reason, detail), where the reason names the first score that is too low; else None."""
    least = {name: getattr(config, name) for name in SCORES}
    try:
        right = verdict(row, CORRECTNESS) if config.correct_only else True
        low = [(name, score(row, name)) for name in SCORES if score(row, name) < least[name]]
    except NotScored as problem:
        return "not_scored", f"{problem}; instruction_scoring writes it"
    if not right:
        return "incorrect", "the answer was judged wrong"
    if low:
        return f"low_{low[0][0]}", "; ".join(f"{name} {value:g} is below {least[name]:g}" for name, value in low)
    return None
