"""Instructions with their answers by what a judge said of them: worth learning from, and right.

Scores are `meta["informativeness"]`, `meta["helpfulness"]` and `meta["generalisation"]`, 0–9, and
`meta["correctness"]`, 0 or 1 (DistilQwen2.5 selects by the same).
"""

from __future__ import annotations

from collections.abc import Sequence

from easydistill.config.base import Section
from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import Rejection, Sample, count_reasons
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


class Config(Section):
    """Lowest scores with which a row stays. The thresholds are no publication's: look at the scores' distribution."""

    identity_name = "operator.instruction_selection"

    informativeness: Score = 5
    """How much there is to learn from a row, at least."""
    helpfulness: Score = 5
    """How well the answer does what was asked, at least."""
    generalisation: Score = 5
    """How far the row serves other tasks than itself, at least."""
    correct_only: bool = True
    """Whether the answer must have been judged right."""


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Keep rows whose scores reach the thresholds. Asks nothing."""
    yield from ()
    return select(config, rows)


def select(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order."""
    result = Result(entered=len(rows))
    for row in rows:
        unfit = _unfit(config, row)
        if unfit is None:
            result.accepted.append(row)
        else:
            result.rejected.append(Rejection(row.id, STAGE, *unfit, 1, list(row.messages)))
    result.facts = {"kept": len(result.accepted), "dropped": count_reasons(result.rejected)}
    return result


def _unfit(config: Config, row: Sample) -> tuple[str, str] | None:
    """Why a row does not stay, as (reason, detail); the reason is the first score that is too low."""
    least = {"informativeness": config.informativeness, "helpfulness": config.helpfulness}
    least["generalisation"] = config.generalisation
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
