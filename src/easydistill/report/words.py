"""A run in words: its models, what was done, and the boxes that show where the rows came from and went."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from easydistill.asking.outputs import LABELED_JSON
from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING, or_missing, plural
from easydistill.report.values import as_dict, as_int, as_text

_COMPARES = "for comparison only: the rows came labelled"
_SCORES = {
    "white_box_kd_local": "scored every token of the labelled rows",
    "on_policy_kd": "scored the tokens that the student wrote",
}


def short_model(reference: str) -> str:
    """A model's name without its location."""
    if "://" in reference and not reference.startswith("pkg://"):
        return reference
    name = re.split(r"[\\/]", reference.rstrip("/\\"))[-1]
    return name.removesuffix(".gguf") or reference


def loss_unit(facts: Facts) -> str:
    """The unit of the training loss."""
    if facts.by_rewards:
        return "clipped objective, per answer token"
    return "per pair" if facts.on_pairs else "nats per answer token"


def teacher_words(facts: Facts) -> tuple[str, str]:
    """(name, location or role) of the teacher."""
    if not facts.config:
        return MISSING, "no config was kept"
    served = _served(facts, "inference")
    if served is not None:
        return served
    if facts.by_rewards:
        given = [name for name, reward in facts.section("rewards").items() if reward is not None]
        return f"rewards: {', '.join(given)}", "applied to the student's own answers"
    reference = as_text(facts.setting("models.teacher"))
    if several := as_dict(facts.setting("models.teachers")):
        models = {**({"other rows": reference} if reference else {}), **several}
        named = ", ".join(f"{short_model(as_text(model))} ({name})" for name, model in models.items())
        return named, "each teaches the rows that name it"
    if not reference:
        return "pairs of answers" if facts.on_pairs else "labelled rows", "no teacher was asked"
    name = short_model(reference)
    role = "" if facts.asks_teacher else _SCORES.get(as_text(facts.setting("job_type")), _COMPARES)
    return name, ", ".join(filter(None, (reference if reference != name else "", role)))


def _served(facts: Facts, section: str) -> tuple[str, str] | None:
    """(name, address) of the model on the server of an `inference` section; None if it names no server."""
    url = as_text(facts.setting(f"{section}.base_url"))
    return (as_text(facts.setting(f"{section}.model")) or "the API's default model", url) if url else None


def student_words(facts: Facts) -> tuple[str, str]:
    """(name, origin) of the student."""
    student = facts.setting("models.student")
    if isinstance(student, dict):
        if isinstance(student.get("from"), str):
            return short_model(student["from"]), _layers(facts, as_int(student.get("keep_layers")))
        kind = as_text(as_dict(student.get("config")).get("model_type")) or "model"
        return f"a new {kind}", "random weights"
    reference = as_text(student)
    if not reference:
        return MISSING, "no student is in the config" if facts.config else "no config was kept"
    name = short_model(reference)
    return name, reference if reference != name else "unchanged"


def _layers(facts: Facts, kept: int | None) -> str:
    # A complete train stage describes the student, with the number of layers it was cut from.
    described = re.search(r"\d+ of \d+ layers", as_text(facts.train.get("student")))
    return f"{described[0]} kept" if described else f"{or_missing(kept)} layers kept"


def lede(facts: Facts) -> str:
    """What the complete stages did, in a sentence or two."""
    if (evaluated := facts.stage("tasks")) is not None:
        scores = as_dict(evaluated.metrics.get("tasks_evaluated"))
        models = {name for by_model in scores.values() for name in as_dict(by_model)}
        asked = f"{plural(len(models), 'model')} answered the problems of {plural(len(scores), 'task')}"
        return f"{asked}: {evaluated.left or 0:,} replies were scored."
    if exported := [stage.name for stage in facts.stages if "exported" in stage.metrics]:
        return f"The student was written in {plural(len(exported), 'format')} and read back: {', '.join(exported)}."
    label, score = facts.stage("label"), facts.stage("score")
    teacher = teacher_words(facts)[0]
    parts = []
    if label is not None and label.left is not None and label.entered is not None:
        parts.append(f"{teacher} answered {label.left:,} of {label.entered:,} prompts.")
    if score is not None and score.tokens.get("scored"):
        subject = "It" if parts else teacher
        parts.append(f"{subject} scored the probability of each of {score.tokens['scored']:,} answer tokens.")
    rows = as_int(facts.train.get("train_rows"))
    if facts.stage("train") is not None and rows is not None:
        parts.append(_learned(facts, rows))
    return " ".join(parts)


def _learned(facts: Facts, rows: int) -> str:
    """What the student learned from."""
    student, origin = student_words(facts)
    what = "pair" if facts.on_pairs else "prompt" if facts.by_rewards else "row"
    how = "LoRA adapters" if facts.setting("training.lora") else "all weights"
    made = "" if origin in {"unchanged", ""} or "/" in origin else f" ({origin})"
    steps = as_int(facts.train.get("steps"))
    pace = f" in {plural(steps, 'optimiser step')}" if steps is not None else ""
    return f"The student, {student}{made}, learned from {plural(rows, what)}{pace} ({how} trained)."


# --- the boxes at the head of the report -------------------------------------------------------------------------


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
    if facts.setting("job_type") == "evaluate":
        return _evaluated(facts)
    if facts.setting("job_type") == "export":
        return [Station("source", "Student", *student_words(facts))]
    trains = facts.has_student or facts.setting("models.student") is not None or facts.stage("train") is not None
    # A synthesis job may ask a student too.
    if (trains and facts.setting("synthesis") is None) or not facts.config:
        return [Station("teacher", "Teacher", *teacher_words(facts)), Station("made", "Student", *student_words(facts))]
    if facts.setting("dataset") is None:
        return []
    return [_rows_in(facts), *_asked(facts), _rows_out(facts)]


def _evaluated(facts: Facts) -> list[Station]:
    """The evaluated models."""
    found: list[Station] = []
    for name, value in facts.section("models").items():
        model = as_dict(value)
        reference = model.get("model")
        if isinstance(reference, dict):
            base, origin = short_model(as_text(reference.get("from"))), f"{reference.get('keep_layers')} layers kept"
            shown, more = (base, origin) if base else ("a new model", "random weights")
        elif isinstance(reference, str):
            shown, more = short_model(reference), reference if reference != short_model(reference) else ""
        else:
            served = as_dict(model.get("inference"))
            shown = as_text(served.get("model")) or "the API's default model"
            more = as_text(served.get("base_url"))
        found.append(Station("teacher" if name == "teacher" else "made", name, shown, more))
    return found


def _rows_in(facts: Facts) -> Station:
    source = as_text(facts.setting("dataset.instruction_path"))
    place = source if source != short_model(source) else ""
    return Station("source", "Rows in", short_model(source) or MISSING, place if source else "no config was kept")


def _asked(facts: Facts) -> list[Station]:
    roles = {spent.role for stage in facts.synthesis for spent in stage.spent}
    found = []
    if facts.asks_teacher and (not roles or "teacher" in roles):
        found.append(Station("teacher", "Teacher", *teacher_words(facts)))
    served = _served(facts, "student_inference")
    if served is not None or facts.setting("models.student") is not None:
        found.append(Station("teacher", "Student", *(served or student_words(facts))))
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
