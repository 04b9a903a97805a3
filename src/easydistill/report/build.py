"""Builds `report.html`, a single file that loads nothing from elsewhere, and the same report as `report.md`."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from easydistill.data.files import write_text
from easydistill.report import markdown, tables, words
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
from easydistill.report.disagreement import costly_table, position_lines, positions_table, shares_table
from easydistill.report.exploration import read_exploration
from easydistill.report.fact_tables import fact_tables, simple_facts
from easydistill.report.figures import count, in_words, moment, plain, probability, time_of
from easydistill.report.flow import flow
from easydistill.report.metrics import metrics_table, verdict
from easydistill.report.settings import settings
from easydistill.report.snippet import snippet
from easydistill.report.synthesis_words import (
    diversity_table,
    funnel_steps,
    outcome,
    spending_table,
    spent_words,
    synthesis_lede,
    title,
)
from easydistill.report.values import as_dict, as_float

TEMPLATES = Path(__file__).parent / "templates"
ANSWERS_AT_FIRST = 24
ANSWERS_IN_MARKDOWN = 8
DIFFERENCES_AT_FIRST = 6
DIFFERENCES_IN_MARKDOWN = 12
COSTLY_AT_FIRST = 10
_KEPT = "Finished work is kept."
_BANNERS = {
    "failed": ("bad", "This run failed", _KEPT),
    "interrupted": ("warn", "This run was interrupted", _KEPT),
    "running": ("warn", "This run has not ended", "It is still running, or was killed."),
}


def build_report(run_directory: Path) -> Path:
    """Write `report.html` and `report.md`; returns the path of the former.

    Unfinished runs have a report too: sections without data are left out, and a banner states how the run stands.
    """
    facts = collect(run_directory)
    shared = _shared(facts)
    page = _environment(autoescape=True).get_template("report.html.jinja").render(**shared, **_for_html(facts))
    answers = facts.answers[:ANSWERS_IN_MARKDOWN]
    text = _environment(autoescape=False).get_template("report.md.jinja").render(**shared, answers=answers)
    write_text(run_directory / "report.md", printable(text))
    target = run_directory / "report.html"
    write_text(target, printable(page))
    return target


def printable(text: str) -> str:
    """Text without lone surrogates, which are valid in JSON but not in UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (count, in_words, probability, markdown.md, markdown.code, markdown.fenced, markdown.beginning)
    environment.filters.update({function.__name__: function for function in functions})
    environment.filters["meter"] = lambda parts: Markup(meter(parts))
    environment.globals.update(markdown_table=markdown.table, markdown_funnel=markdown.funnel)
    return environment


# --- what the templates are given -----------------------------------------------------------------------------------


def _shared(facts: Facts) -> dict[str, Any]:
    return {
        "facts": facts,
        "summary": facts.summary,
        "banner": banner(facts),
        "flow": flow(facts),
        "lede": words.lede(facts) or synthesis_lede(facts),
        "synthesis": [_synthesis(facts, number) for number in range(len(facts.synthesis))],
        "verdict": verdict(facts),
        "time": time_of(tables.total_seconds(facts)),
        "when": moment(facts.summary.finished or facts.summary.started),
        "metrics": metrics_table(facts) if facts.metrics else None,
        "loss_unit": words.loss_unit(facts),
        "curve_words": curve_words(facts),
        "exploration": read_exploration(facts.directory / "metrics.jsonl", facts.train),
        # Synthesis stages have funnels of their own.
        "funnel": tables.funnel(facts) if len(facts.synthesis) < len(facts.stages) else [],
        "rejected_words": tables.rejected_words(facts),
        "truncated_words": tables.truncated_words(facts),
        "stages": tables.stage_table(facts) if facts.stages else None,
        "rejected": tables.rejected_table(facts) if facts.rejected else None,
        "settings": settings(facts),
        "environment": environment_words(facts),
        "no_answer": next((row.note for row in facts.metrics if row.name == "rouge_l"), "") or "no answer was recorded",
        "student_is_older": facts.has_student and facts.stage("train") is None,
        "snippet": snippet(str(facts.directory / "student"), scores=facts.scores),
        "left": _left_to_learn(facts),
    }


def _synthesis(facts: Facts, number: int) -> dict[str, Any]:
    """The section on a synthesis stage."""
    stage = facts.synthesis[number]
    allowed = as_float(facts.setting("dataset.max_rejected_share"))
    return {
        # If the head is about other stages, the section itself says what this one did.
        "lede": f"{outcome(stage)} {spent_words(stage, facts)}" if words.lede(facts) else "",
        "anchor": f"synthesis-{number + 1}",
        "title": title(stage, facts.synthesis),
        "stage": stage,
        "limit": "" if allowed is None or allowed >= 1 else f"Up to {allowed:.0%} may be rejected.",
        "spent_words": spent_words(stage, facts),
        "funnel": funnel_steps(stage),
        "diversity": diversity_table(stage),
        "spending": spending_table(stage, facts),
        "facts": simple_facts(stage),
        "tables": fact_tables(stage),
    }


def _left_to_learn(facts: Facts) -> dict[str, Any] | None:
    """The section that compares teacher and student token by token; None if they were not compared."""
    found = facts.disagreement
    if found is None or found.latest is None:
        return None
    side, positions, shares = found.latest, position_lines(found), shares_table(found)
    most = max((item.kl * item.count for item in side.costly), default=0.0) or 1.0
    return {
        "when": "after" if found.after is not None else "before",
        "side": side,
        "shares": shares if shares.rows else None,
        "positions": positions_table(positions) if positions else None,
        "charts": [Markup(position_chart(positions, frame)) for frame in (POSITIONS_WIDE, POSITIONS_NARROW)]
        if positions
        else [],
        "largest": side.largest[:DIFFERENCES_AT_FIRST],
        "more": side.largest[DIFFERENCES_AT_FIRST:],
        "in_markdown": side.largest[:DIFFERENCES_IN_MARKDOWN],
        "costly": costly_table(side.costly[:COSTLY_AT_FIRST], most) if side.costly else None,
        "more_costly": costly_table(side.costly[COSTLY_AT_FIRST:], most),
    }


def _for_html(facts: Facts) -> dict[str, Any]:
    points = facts.curve.points
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        # Whatever an answer contains, only this script runs and nothing is fetched.
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "charts": [Markup(loss_curve(points, frame)) for frame in (WIDE, NARROW)] if len(points) > 1 else [],
        "curve_json": Markup(json_in_html(_curve_data(facts.curve))),
        "smoothed": len(points) >= SMOOTH_FROM,
        "has_rate": any(point.rate for point in points),
        "shown_answers": facts.answers[:ANSWERS_AT_FIRST],
        "more_answers": facts.answers[ANSWERS_AT_FIRST:],
        "config_text": json.dumps(facts.config, indent=2, ensure_ascii=False) if facts.config else "",
    }


def json_in_html(value: Any) -> str:
    """JSON for a `<script type="application/json">` element, with no character that could end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _curve_data(curve: Curve) -> list[list[float | None]]:
    even = smooth([point.loss for point in curve.points])
    return [
        [point.step, point.loss, round(average, 5), point.rate, point.epoch]
        for point, average in zip(curve.points, even, strict=True)
    ]


def banner(facts: Facts) -> tuple[str, str, str] | None:
    """(kind, headline, text) unless the run finished normally."""
    status = facts.summary.status
    if status == "done":
        if facts.summary.exit_code == 3:
            return "warn", "Finished, but too many rows were rejected", tables.rejected_words(facts)
        return None
    if status == "unknown":
        return "bad", "The state of this run is unknown", "summary.json is missing or cannot be read."
    finished = ", ".join(stage.name for stage in facts.stages)
    complete = f"Complete so far: {finished}." if finished else "No stage is complete yet."
    kind, headline, more = _BANNERS.get(status, ("warn", f"This run is {status}", ""))
    return kind, headline, f"{complete} {more}".rstrip()


def curve_words(facts: Facts) -> list[str]:
    """Notes that the reader of the loss curve needs."""
    curve = facts.curve
    notes = []
    if curve.per_point > 1:
        notes.append(f"Each point is the mean of {curve.per_point} of {curve.logged:,} logged steps.")
    if curve.not_finite:
        lost = "loss was not a finite number and is" if curve.not_finite == 1 else "losses were not finite and are"
        notes.append(f"{curve.not_finite:,} logged {lost} left out.")
    if curve.points and facts.stage("train") is None:
        notes.append("Training is not complete: these are the losses logged so far by attempts in this directory.")
    return notes


def environment_words(facts: Facts) -> list[tuple[str, str]]:
    """(name, value) of the interpreter, the machine and the packages."""
    names = {"python": "Python", "platform": "Platform", "cpus": "Processors"}
    found = {name: facts.environment.get(key) for key, name in names.items()}
    lines = [(name, plain(value)) for name, value in found.items() if value is not None]
    return lines + [(name, plain(version)) for name, version in as_dict(facts.environment.get("packages")).items()]
