"""`report.html`, one file that needs nothing from outside, and its twin `report.md`, from a run directory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from easydistill.data.files import write_text
from easydistill.report import words
from easydistill.report.charts import (
    NARROW,
    POSITIONS_NARROW,
    POSITIONS_WIDE,
    SMOOTH_FROM,
    WIDE,
    loss_curve,
    meter,
    position_chart,
)
from easydistill.report.collect import Facts, collect
from easydistill.report.curve import Curve, smooth
from easydistill.report.disagreement import position_lines, probability, share_lines
from easydistill.report.exploration import read_exploration
from easydistill.report.fact_tables import fact_tables, simple_facts
from easydistill.report.settings_words import settings
from easydistill.report.synthesis_words import (
    Station,
    diversity_lines,
    funnel_lines,
    in_words,
    outcome,
    spending_lines,
    spending_notes,
    spent_words,
    stations,
    synthesis_lede,
    title,
)
from easydistill.report.tables import funnel, rejected_words, stage_lines, total_seconds, truncated_words
from easydistill.report.values import as_float

TEMPLATES = Path(__file__).parent / "templates"
ANSWERS_AT_FIRST = 24
ANSWERS_IN_MARKDOWN = 8
DIFFERENCES_AT_FIRST = 6
DIFFERENCES_IN_MARKDOWN = 12
COSTLY_AT_FIRST = 10
CUT_AT = 320
"""Characters of a sample that are seen before it is unfolded."""
CUT_LINES = 7


def build_report(run_directory: Path) -> Path:
    """Write `report.html` and `report.md`; returns the former's path.

    Works for unfinished runs too: what has no data is left out, and a banner tells the run's state.
    """
    facts = collect(run_directory)
    shared = _shared(facts) | {"exploration": read_exploration(run_directory / "metrics.jsonl", facts.train)}
    target = run_directory / "report.html"
    html = _environment(autoescape=True).get_template("report.html.jinja").render(**shared, **_for_html(facts))
    markdown = (
        _environment(autoescape=False)
        .get_template("report.md.jinja")
        .render(**shared, answers=facts.answers[:ANSWERS_IN_MARKDOWN])
    )
    write_text(run_directory / "report.md", printable(markdown))
    write_text(target, printable(html))
    return target


def printable(text: str) -> str:
    """Text without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment(*, autoescape: bool) -> jinja2.Environment:
    """One for all reports of a process: compiling the templates takes longer than filling them in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "count": words.count,
        "md": md,
        "code": code,
        "fenced": fenced,
        "beginning": beginning,
        "in_words": in_words,
        "probability": probability,
    }
    environment.filters |= filters
    return environment


# --- Markdown -----------------------------------------------------------------------------------------------------


def md(text: str) -> str:
    """Text as text inside Markdown: on one line, nothing in it markup."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(text).split()))


def _fence(text: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def code(text: str) -> str:
    """Text as inline code, also inside a table."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = _fence(flat, 1)
    return f"{fence} {flat} {fence}" if "`" in flat else f"{fence}{flat}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """Text as a block of code that nothing in it can end."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def beginning(text: str) -> str:
    """A long text's beginning, ending in "…"; a short one as it is."""
    start = "\n".join(text.split("\n")[:CUT_LINES])
    if len(start) > CUT_AT:
        # Between words, where there is a space near enough.
        place = start.rfind(" ", CUT_AT - 40, CUT_AT)
        start = start[: place if place > 0 else CUT_AT]
    return text if len(start) == len(text) else f"{start.rstrip()}…"


# --- what the templates are given -----------------------------------------------------------------------------------


def snippet(directory: str, *, scores: bool = False) -> str:
    """How to load the student with plain transformers.

    Args:
        scores: whether it is a reward model.
    """
    return _scoring(directory) if scores else _answering(directory)


def _scoring(directory: str) -> str:
    return f"""\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = {json.dumps(directory, ensure_ascii=False)}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path)

chat = [
    {{"role": "user", "content": "Why does bread rise?"}},
    {{"role": "assistant", "content": "Yeast makes gas, and the dough holds it."}},
]
inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits.item())
"""


def _answering(directory: str) -> str:
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = {json.dumps(directory, ensure_ascii=False)}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

chat = [{{"role": "user", "content": "Why does bread rise?"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


def _shared(facts: Facts) -> dict[str, Any]:
    return {
        "facts": facts,
        "summary": facts.summary,
        "banner": banner(facts),
        "flow": flow(facts),
        "lede": words.lede(facts) or synthesis_lede(facts),
        "synthesis": [_synthesis(facts, number) for number in range(len(facts.synthesis))],
        "verdict": words.verdict(facts),
        "time": words.time_of(total_seconds(facts)),
        "when": words.moment(facts.summary.finished or facts.summary.started),
        "metrics": [words.metric_words(row) for row in words.ordered_metrics(facts.metrics)],
        "loss_unit": words.loss_unit(facts),
        "curve_words": curve_words(facts),
        # Synthesis stages show funnels of their own.
        "funnel": funnel(facts) if len(facts.synthesis) < len(facts.stages) else [],
        "rejected_words": rejected_words(facts),
        "truncated_words": truncated_words(facts),
        "stages": stage_lines(facts),
        "settings": settings(facts),
        "environment": environment_words(facts),
        "no_answer": _why_no_answer(facts),
        "student_is_older": facts.has_student and facts.stage("train") is None,
        "snippet": snippet(str(facts.directory / "student"), scores=words.is_reward_model(facts)),
        "left": _left_to_learn(facts),
    }


def flow(facts: Facts) -> list[Station]:
    """What the head shows from left to right; nothing for a job made of jobs, which have reports of their own."""
    student = facts.has_student or facts.setting("models.student") is not None or facts.stage("train") is not None
    # A synthesis job may ask a student; it makes rows.
    if (student and facts.setting("synthesis") is None) or not facts.config:
        return [
            Station("teacher", "Teacher", *words.teacher_words(facts)),
            Station("made", "Student", *words.student_words(facts)),
        ]
    return stations(facts) if facts.setting("dataset") is not None else []


def _synthesis(facts: Facts, number: int) -> dict[str, Any]:
    """What the section on a synthesis stage is made of."""
    stage = facts.synthesis[number]
    allowed = as_float(facts.setting("dataset.max_rejected_share"))
    return {
        # Where the head tells of other stages, this is the place for what the stage did.
        "lede": f"{outcome(stage)} {spent_words(stage, facts)}" if words.lede(facts) else "",
        "anchor": f"synthesis-{number + 1}",
        "title": title(stage, facts.synthesis),
        "stage": stage,
        "limit": "" if allowed is None or allowed >= 1 else f"Up to {allowed:.0%} may be rejected.",
        "spent_words": spent_words(stage, facts),
        "funnel": funnel_lines(stage),
        "diversity": diversity_lines(stage),
        "spending": spending_lines(stage, facts),
        "spending_notes": spending_notes(stage, facts),
        "facts": simple_facts(stage),
        "tables": fact_tables(stage),
    }


def _left_to_learn(facts: Facts) -> dict[str, Any] | None:
    """What the section on teacher and student, token by token, is made of; None where nothing was compared."""
    found = facts.disagreement
    if found is None or found.latest is None:
        return None
    side = found.latest
    return {
        "when": "after" if found.after is not None else "before",
        "tokens": side.tokens,
        "not_finite": side.not_finite,
        "shares": share_lines(found),
        "positions": position_lines(found),
        "largest": side.largest[:DIFFERENCES_AT_FIRST],
        "more": side.largest[DIFFERENCES_AT_FIRST:],
        "in_markdown": side.largest[:DIFFERENCES_IN_MARKDOWN],
        "costly": side.costly[:COSTLY_AT_FIRST],
        "more_costly": side.costly[COSTLY_AT_FIRST:],
        "costliest": max((item.kl * item.count for item in side.costly), default=0.0) or 1.0,
    }


def _for_html(facts: Facts) -> dict[str, Any]:
    points = facts.curve.points
    positions = position_lines(facts.disagreement) if facts.disagreement is not None else []
    frames = (POSITIONS_WIDE, POSITIONS_NARROW) if positions else ()
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        # Only this script runs, and nothing is fetched, whatever an answer may contain.
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "charts": [Markup(loss_curve(points, frame)) for frame in (WIDE, NARROW)] if len(points) > 1 else [],
        "position_charts": [Markup(position_chart(positions, frame)) for frame in frames],
        "curve_json": Markup(json_in_html(_curve_data(facts.curve))),
        "smoothed": len(points) >= SMOOTH_FROM,
        "has_rate": any(point.rate for point in points),
        "meter": _meter,
        "shown_answers": facts.answers[:ANSWERS_AT_FIRST],
        "more_answers": facts.answers[ANSWERS_AT_FIRST:],
        "most_rejected": max((item.count for item in facts.rejected), default=1),
        "config_text": json.dumps(facts.config, indent=2, ensure_ascii=False) if facts.config else "",
    }


def _meter(share: float, kind: str) -> Markup:
    return Markup(meter((share, kind)))


def json_in_html(value: Any) -> str:
    """JSON for a `<script type="application/json">` element: nothing in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _curve_data(curve: Curve) -> list[list[float | None]]:
    even = smooth([point.loss for point in curve.points])
    return [
        [point.step, point.loss, round(average, 5), point.rate, point.epoch]
        for point, average in zip(curve.points, even, strict=True)
    ]


def banner(facts: Facts) -> tuple[str, str, str] | None:
    """(kind, headline, text) where there is more to say of the state than that the run is done."""
    summary = facts.summary
    finished = ", ".join(stage.name for stage in facts.stages)
    kept = f"Complete so far: {finished}." if finished else "No stage is complete yet."
    if summary.status == "done":
        if summary.exit_code == 3:
            return "warn", "Finished, but too many rows were rejected", rejected_words(facts)
        return None
    if summary.status == "failed":
        return "bad", "This run failed", f"{kept} What is finished is kept."
    if summary.status == "interrupted":
        return "warn", "This run was interrupted", f"{kept} What is finished is kept."
    if summary.status == "running":
        return "warn", "This run has not ended", f"{kept} It is still at work, or was killed."
    if summary.status == "unknown":
        return "bad", "The state of this run is unknown", "summary.json is missing or cannot be read."
    return "warn", f"This run is {summary.status}", kept


def curve_words(facts: Facts) -> list[str]:
    """What must be said under the loss curve for it to be read rightly."""
    curve = facts.curve
    notes = []
    if curve.per_point > 1:
        notes.append(f"Each point is the mean of {curve.per_point} of {curve.logged:,} logged steps.")
    if curve.not_finite:
        lost = "loss was not a finite number and is" if curve.not_finite == 1 else "losses were not finite and are"
        notes.append(f"{curve.not_finite:,} logged {lost} left out.")
    if curve.points and facts.stage("train") is None:
        notes.append("Training is not complete: this is what its attempts in this directory have logged so far.")
    return notes


def environment_words(facts: Facts) -> list[tuple[str, str]]:
    """Name and value of what the run ran on."""
    found = facts.environment
    lines = [
        (name, words.plain(found[key]))
        for key, name in (("python", "Python"), ("platform", "Platform"), ("cpus", "Processors"))
        if found.get(key) is not None
    ]
    packages = found.get("packages")
    if isinstance(packages, dict):
        lines += [(name, words.plain(version)) for name, version in packages.items()]
    return lines


def _why_no_answer(facts: Facts) -> str:
    note = next((row.note for row in facts.metrics if row.name == "rouge_l"), "")
    return note or "no answer was recorded"
