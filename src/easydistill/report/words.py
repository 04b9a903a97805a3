"""Sentences about a run: its models and what was done."""

from __future__ import annotations

import re

from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING, count, plural
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
    url, model = as_text(facts.setting("inference.base_url")), as_text(facts.setting("inference.model"))
    if url:
        return model or "the API's default model", url
    if facts.by_rewards:
        given = [name for name, reward in facts.section("rewards").items() if reward is not None]
        return f"rewards: {', '.join(given)}", "applied to the student's own answers"
    reference = as_text(facts.setting("models.teacher"))
    if not reference:
        return "pairs of answers" if facts.on_pairs else "labelled rows", "no teacher was asked"
    name = short_model(reference)
    role = "" if facts.asks_teacher else _SCORES.get(as_text(facts.setting("job_type")), _COMPARES)
    return name, ", ".join(filter(None, (reference if reference != name else "", role)))


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
    return f"{described[0]} kept" if described else f"{count(kept)} layers kept"


def lede(facts: Facts) -> str:
    """What the complete stages did, in a sentence or two."""
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
