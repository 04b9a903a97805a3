"""Pictures of recipe runs for the gallery: `python docs/gallery.py runs/recipes/*-small`.

From each run's `summary.json` to `docs/pictures/NAME.svg`: how many rows each job passed on, and what changed on
held-out prompts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parent / "pictures"
_LINE, _LEFT, _BARS, _TABLE, _RIGHT = 22, 110, 220, 420, 700
_METRICS = {
    "cross_entropy": ("cross-entropy", 3),
    "kl": ("KL from the teacher", 3),
    "agreement": ("top-1 agreement", 3),
    "rouge_l": ("ROUGE-L", 3),
    "reward_accuracy": ("better answer preferred", 2),
    "margin": ("margin of the rewards", 3),
}
_STYLE = (
    "text{font:13px sans-serif;fill:#1f2933}.n{text-anchor:end}.q{fill:#6b7785}"
    ".in{fill:#d9e2ec}.out{fill:#2f6f9f}@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.q{fill:#9aa5b1}"
    ".in{fill:#3e4c59}}"
)


def picture(summary: dict[str, Any]) -> str:
    """A run's summary as SVG."""
    jobs = [(name, stage["rows"]) for name, stage in summary["stages"].items() if stage["rows"]["entered"]]
    changes = list(_changes(summary["metrics"]))
    height = _LINE * (max(len(jobs), len(changes)) + 2)
    most = max(rows["entered"] for _, rows in jobs)
    body = [_text(0, 1, "rows in, and out, of each job", "q"), *_rows(jobs, most)]
    if changes:
        body += [_text(_TABLE, 1, "held-out prompts: before → after", "q"), *_table(changes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_RIGHT} {height}" width="{_RIGHT}" height="{height}" '
        f'role="img"><style>{_STYLE}</style>{"".join(body)}</svg>\n'
    )


def _rows(jobs: list[tuple[str, dict[str, Any]]], most: int) -> Iterator[str]:
    for line, (name, rows) in enumerate(jobs, start=2):
        yield _text(_LEFT - 8, line, name, "n")
        for kind, count in (("in", rows["entered"]), ("out", rows["left"])):
            width = max(1, round(_BARS * count / most)) if count else 0
            yield f'<rect class="{kind}" x="{_LEFT}" y="{_LINE * line - 14}" width="{width}" height="16"/>'
        shown = f"{rows['left']}" if rows["left"] == rows["entered"] else f"{rows['left']} of {rows['entered']}"
        end = _LEFT + round(_BARS * rows["entered"] / most)
        yield _text(end + 5, line, shown, "")


def _changes(metrics: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    for key, (title, digits) in _METRICS.items():
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None:
            yield title, f"{old:.{digits}f}", f"{new:.{digits}f}"


def _table(changes: list[tuple[str, str, str]]) -> Iterator[str]:
    for line, (title, old, new) in enumerate(changes, start=2):
        yield _text(_TABLE, line, title, "")
        yield _text(_RIGHT - 68, line, old, "n q")
        yield _text(_RIGHT - 8, line, new, "n")


def _text(x: int, line: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{_LINE * line - 1}" class="{kind}">{escape(text)}</text>'


def main(runs: list[str]) -> None:
    """Write the picture of each run."""
    PICTURES.mkdir(exist_ok=True)
    for run in map(Path, runs):
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        target = PICTURES / f"{run.name.removesuffix('-small')}.svg"
        target.write_text(picture(summary), encoding="utf-8")
        print(target.relative_to(PICTURES.parents[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
