"""Builds `report.html`, a single file that loads nothing but thumbnails of images beside it, and the same report as
`report.md`."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from easydistill.data.files import write_text
from easydistill.report import markdown, tables
from easydistill.report.charts import meter
from easydistill.report.collect import Facts, collect
from easydistill.report.costs import bills_words, own_bills
from easydistill.report.curve import Curve, smooth
from easydistill.report.figures import moment, probability, time_of
from easydistill.report.pipeline import pipeline_flow, pipeline_lede, rejected_words
from easydistill.report.sections import Report, sections
from easydistill.report.synthesis_words import synthesis_lede
from easydistill.report.words import flow, lede

TEMPLATES = Path(__file__).parent / "templates"
_KEPT = "Finished work is kept."
_BANNERS = {
    "failed": ("bad", "This run failed", _KEPT),
    "interrupted": ("warn", "This run was interrupted", _KEPT),
    "running": ("warn", "This run has not ended", "It is still running, or was killed."),
}


def build_report(run_directory: Path) -> Path:
    """Write `report.html` and `report.md`; returns the path of the former.

    Unfinished runs have a report too: sections without data are left out, and a banner gives the state of the run.
    """
    facts = collect(run_directory)
    head = _head(facts)
    write_text(run_directory / "report.md", printable(markdown.report(head)))
    target = run_directory / "report.html"
    write_text(target, printable(_html(facts, head)))
    return target


def printable(text: str) -> str:
    """Text without lone surrogates, which are valid in JSON but not in UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _head(facts: Facts) -> Report:
    summary = facts.summary
    return Report(
        summary=summary,
        time=f"{time_of(tables.total_seconds(facts))} of work",
        when=moment(summary.finished or summary.started),
        flow=tuple(pipeline_flow(facts) if facts.is_pipeline else flow(facts)),
        lede=pipeline_lede(facts) if facts.is_pipeline else _lede(facts),
        banner=banner(facts),
        sections=tuple(sections(facts)),
    )


def _lede(facts: Facts) -> str:
    words, bills = lede(facts), [bill for _, bill in own_bills(facts)]
    if not words:
        return synthesis_lede(facts)
    return f"{words} {bills_words(bills)}" if bills and facts.stage("label") is not None else words


@cache
def _html_template() -> jinja2.Template:
    """Compiled once per process: compiling takes longer than rendering."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "beginning": markdown.beginning,
        "probability": probability,
        "meter": lambda parts: Markup(meter(parts)),
    }
    return environment.get_template("report.html.jinja")


def _html(facts: Facts, head: Report) -> str:
    curve = json_in_html(_curve_data(facts.curve)) if len(facts.curve.points) > 1 else ""
    return html_page(head, str(facts.directory), curve, images=_shows_images(facts))


def html_page(head: Report, source: str, curve: str = "", *, images: bool = False) -> str:
    """The page.

    Args:
        source: what it is made from.
        curve: data of the loss curve for the page's script, as JSON.
        images: whether it shows thumbnails, which lie beside it: it is opened as a file or from a server.
    """
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _html_template().render(
        head=head,
        directory=source,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # Whatever an answer contains, only this script runs and nothing is fetched.
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        + ("; img-src 'self' file:" if images else ""),
        curve_json=Markup(curve),
    )


def _shows_images(facts: Facts) -> bool:
    return any(row.images for row in facts.pictured) or any(answer.images for answer in facts.answers)


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
            return "warn", "Finished, but too many rows were rejected", rejected_words(facts)
        return None
    if status == "unknown":
        return "bad", "The state of this run is unknown", "summary.json is missing or cannot be read."
    finished = ", ".join(stage.name for stage in facts.stages)
    complete = f"Complete so far: {finished}." if finished else "No stage is complete yet."
    kind, headline, more = _BANNERS.get(status, ("warn", f"This run is {status}", ""))
    return kind, headline, f"{complete} {more}".rstrip()
