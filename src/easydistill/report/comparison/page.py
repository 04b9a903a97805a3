"""Builds the page of a comparison: HTML that loads nothing but thumbnails, and the same as Markdown beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from easydistill.data.files import write_text
from easydistill.errors import DataError
from easydistill.report import markdown
from easydistill.report.build import html_page, printable
from easydistill.report.collect import Summary
from easydistill.report.comparison.runs import Compared, read_runs
from easydistill.report.comparison.sections import sections, verdict, warnings
from easydistill.report.sections import Report


def build_comparison(runs: Sequence[Path], target: Path) -> Path:
    """Write the comparison of two or more runs to `target`, and as Markdown beside it; returns `target`.

    Raises:
        DataError: there are not two different runs, or `target` cannot be the page's name.
    """
    _check(target)
    found = read_runs(runs)
    head = _head(found, target)
    write_text(target.with_suffix(".md"), printable(markdown.report(head)))
    places = ", ".join(str(run.facts.directory) for run in found)
    # Images lie in the runs, whose own reports made them.
    images = any(answer.images for run in found for answer in run.answers)
    write_text(target, printable(html_page(head, f"{places} by `easydistill compare`", images=images)))
    return target


def _check(target: Path) -> None:
    """Refuse a name that is not that of a page, before anything is read."""
    if target.is_dir() or target.suffix.lower() not in {".html", ".htm"}:
        name = target / "compare.html" if target.is_dir() else target.with_suffix(".html")
        raise DataError(
            f"{target}: the comparison is a page, with the same as Markdown beside it\n    → name it {name}"
        )


def _head(runs: Sequence[Compared], target: Path) -> Report:
    told = warnings(runs)
    return Report(
        summary=Summary(
            name=" · ".join(run.name for run in runs),
            job_type=", ".join(dict.fromkeys(run.facts.summary.job_type for run in runs if run.facts.summary.job_type)),
            status="comparison",
            exit_code=None,
            error="",
            started="",
            finished="",
            seconds=None,
            resume="",
        ),
        time=f"{len(runs)} runs",
        when="",
        flow=(),
        lede=verdict(runs),
        banner=("warn", "Before you compare", " ".join(told)) if told else None,
        sections=tuple(sections(runs, target)),
    )
