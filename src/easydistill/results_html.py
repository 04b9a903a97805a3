"""Results as small tables for notebooks. All text of a run is escaped: rows and names may come from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

from easydistill.engine.progress import duration

_LONGEST = 200
"""Characters of a cell."""


class Shown(Protocol):
    """What is shown of a `RunResult`."""

    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def run_directory(self) -> Path: ...
    @property
    def status(self) -> str: ...
    @property
    def cost(self) -> float | None: ...
    @property
    def report(self) -> Path: ...
    @property
    def student(self) -> Path: ...
    def compared(self) -> list[dict[str, Any]]: ...


def result_html(result: Shown) -> str:
    """The summary of a run: what it was, its metrics before and after, its rows, where its files are."""
    summary = result.summary
    head = f"{summary.get('job_type', 'run')}: {result.status}"
    parts = [f"<p><b>{escape(head)}</b>{escape(_took(summary))}</p>"]
    if summary.get("error"):
        parts.append(f"<p>{escape(_short(summary['error']))}</p>")
    if compared := result.compared():
        parts.append(_table(compared, ("metric", "before", "after", "change")))
    if rows := summary.get("rows"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in rows.get("rejected_by_reason", {}).items())
        rejected = f", {rows['rejected']} rejected ({reasons})" if rows.get("rejected") else ""
        words = f"{rows['entered']} rows read, {rows['accepted']} accepted{rejected}"
        parts.append(f"<p>{escape(words)}</p>")
    if result.cost is not None:
        parts.append(f"<p>cost: {result.cost:.4g}</p>")
    links = [_link("report", result.report), _link("student", result.student), _link("files", result.run_directory)]
    parts.append(f"<p>{' · '.join(link for link in links if link)}</p>")
    return f"<div class='easydistill-result'>{''.join(parts)}</div>"


def rows_html(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The first rows of a file."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = _table(rows, names) if rows else "<p>none</p>"
    return f"<div class='easydistill-rows'><p>{escape(title)}: the first {len(rows)}</p>{table}</div>"


def _took(summary: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{name} {duration(stage['seconds'])}" for name, stage in summary.get("stages", {}).items())
    return f" ({stages})" if stages else ""


def _link(text: str, path: Path) -> str:
    """A link from the notebook's folder, which is the working directory as a rule."""
    if not path.exists():
        return ""
    where = os.path.relpath(path)
    return f"<a href='{escape(Path(where).as_posix(), quote=True)}'>{escape(text)}</a>"


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else escape(_short(value))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
