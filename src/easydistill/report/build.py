"""`report.html`, self-contained, and `report.md` from a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from easydistill.data.files import write_text
from easydistill.engine.progress import duration
from easydistill.report.charts import bars, loss_curve
from easydistill.report.collect import Facts, MetricRow, collect

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_AT_FIRST = 12


def build_report(run_directory: Path) -> Path:
    """Write `report.html` and `report.md`; returns the former's path. Works for unfinished runs too."""
    facts = collect(run_directory)
    values = _values(facts)
    target = run_directory / "report.html"
    write_text(target, _environment(autoescape=True).get_template("report.html.jinja").render(values))
    markdown = _environment(autoescape=False).get_template("report.md.jinja").render(values)
    write_text(run_directory / "report.md", markdown)
    return target


def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "percent": percent, "cell": cell}
    return environment


def number(value: Any) -> str:
    """A figure as a person reads it."""
    if value is None:
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.0%}"


def cell(value: Any) -> str:
    """Text inside a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def shown_value(row: MetricRow, value: float | None) -> str:
    """A metric's value in its own unit."""
    if value is None:
        return "n/a"
    return f"{value:.1%}" if row.name == "agreement" else f"{value:.4f}"


def _values(facts: Facts) -> dict[str, Any]:
    summary, models = facts.summary, facts.config.get("models") or {}
    inference = facts.config.get("inference") or {}
    teacher = models.get("teacher") or inference.get("model") or inference.get("base_url")
    rows = summary.get("rows") or {}
    curve = facts.curve
    return {
        "facts": facts,
        "summary": summary,
        "title": summary.get("name") or facts.directory.name,
        "job_type": summary.get("job_type", ""),
        "status": summary.get("status", "unknown"),
        "teacher": teacher or "none: the rows were labelled already",
        "student": facts.train.get("student") or _student(models.get("student")),
        "rows": rows,
        "funnel": _funnel(facts, rows),
        "metric_cells": [(row, shown_value(row, row.before), shown_value(row, row.after)) for row in facts.metrics],
        "loss_svg": loss_curve(*([point[name] for point in curve] for name in ("step", "loss", "lr")))
        if len(curve) > 1
        else "",
        "time_svg": bars(
            [(stage["name"], stage["seconds"], duration(stage["seconds"])) for stage in facts.stages], "Time per stage"
        )
        if facts.stages
        else "",
        "tokens": [
            (stage["name"], kind, count)
            for stage in facts.stages
            for kind, count in (stage.get("tokens") or {}).items()
        ],
        "settings": _settings(facts),
        "config_text": json.dumps(facts.config, indent=2, ensure_ascii=False),
        "shown_at_first": SHOWN_AT_FIRST,
        "student_path": str(facts.directory / "student"),
    }


def _student(student: Any) -> str:
    if isinstance(student, dict):
        if "from" in student:
            return f"{student['from']}, {student.get('keep_layers')} layers kept"
        return f"random weights, {(student.get('config') or {}).get('model_type', 'model')}"
    return str(student or "n/a")


def _funnel(facts: Facts, rows: dict[str, Any]) -> list[tuple[str, int, float]]:
    """(name, rows, share of all rows) from seed rows to rows trained on."""
    entered = rows.get("entered") or 0
    if not entered:
        return []
    steps = [("rows read", entered)]
    label = next((stage for stage in facts.stages if stage["name"] == "label"), None)
    if label is not None:
        steps.append(("answered by the teacher", label["rows"]["left"]))
    for name, key in (("trained on", "train_rows"), ("held out", "heldout_rows")):
        if key in facts.train:
            steps.append((name, facts.train[key]))
    return [(name, count, count / entered) for name, count in steps]


def _settings(facts: Facts) -> list[tuple[str, str]]:
    """The settings that matter most, in words."""
    training = facts.config.get("training") or {}
    inference = facts.config.get("inference") or {}
    found: list[tuple[str, str]] = []
    if training:
        batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
        length = (
            f"{training['max_steps']} steps"
            if training.get("max_steps")
            else f"{training['num_train_epochs']:g} epochs"
        )
        how = "LoRA" if training.get("lora") else "full fine-tuning"
        found.append(("training", f"{how}, {length}, batch {batch}, learning rate {training['learning_rate']:g}"))
    if inference:
        temperature = inference.get("temperature")
        heat = "the server's temperature" if temperature is None else f"temperature {temperature:g}"
        found.append(("sampling", f"{heat}, at most {inference['max_new_tokens']} new tokens"))
    for name, key in (("parameters", "parameters"), ("of these trained", "trainable_parameters"), ("steps", "steps")):
        if key in facts.train:
            found.append((name, number(facts.train[key])))
    if facts.train.get("truncated_rows"):
        found.append(("truncated rows", number(facts.train["truncated_rows"])))
    return found
