"""The boxes at the head of the report: where the rows or the labels came from, and what was made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from easydistill.asking.outputs import LABELED_JSON
from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING, plural
from easydistill.report.values import as_text
from easydistill.report.words import short_model, student_words, teacher_words


@dataclass(frozen=True)
class Station:
    """A box."""

    kind: Literal["source", "teacher", "made"]
    """CSS class."""
    name: str
    value: str
    more: str


def flow(facts: Facts) -> list[Station]:
    """Teacher and student, or the flow of rows in a synthesis job; nothing for pipelines, whose jobs have reports."""
    trains = facts.has_student or facts.setting("models.student") is not None or facts.stage("train") is not None
    # A synthesis job may ask a student too.
    if (trains and facts.setting("synthesis") is None) or not facts.config:
        return [Station("teacher", "Teacher", *teacher_words(facts)), Station("made", "Student", *student_words(facts))]
    if facts.setting("dataset") is None:
        return []
    return [_rows_in(facts), *_asked(facts), _rows_out(facts)]


def _rows_in(facts: Facts) -> Station:
    source = as_text(facts.setting("dataset.instruction_path"))
    place = source if source != short_model(source) else ""
    return Station("source", "Rows in", short_model(source) or MISSING, place if source else "no config was kept")


def _asked(facts: Facts) -> list[Station]:
    roles = {spent.role for stage in facts.synthesis for spent in stage.spent}
    found = []
    if facts.asks_teacher and (not roles or "teacher" in roles):
        found.append(Station("teacher", "Teacher", *teacher_words(facts)))
    served = as_text(facts.setting("student_inference.base_url"))
    if served:
        name = as_text(facts.setting("student_inference.model"))
        found.append(Station("teacher", "Student", name or "the API's default model", served))
    elif facts.setting("models.student") is not None:
        found.append(Station("teacher", "Student", *student_words(facts)))
    if facts.setting("judge") is not None:
        name = as_text(facts.setting("judge.inference.model")) or short_model(as_text(facts.setting("models.judge")))
        found.append(Station("teacher", "Judge", name or MISSING, as_text(facts.setting("judge.inference.base_url"))))
    return found


def _rows_out(facts: Facts) -> Station:
    last = next((stage for stage in reversed(facts.stages) if stage.left is not None), None)
    if last is None or last.left is None:
        return Station("made", "Rows out", MISSING, "no stage is complete")
    place = as_text(facts.setting("dataset.labeled_path")) or f"{LABELED_JSON} of stage {last.name}"
    return Station("made", "Rows out", plural(last.left, "row"), place)
