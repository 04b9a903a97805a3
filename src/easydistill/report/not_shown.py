"""What the student's chat template left out of the rows."""

from __future__ import annotations

from collections.abc import Iterator

from easydistill.data.numbers import as_float
from easydistill.report import document as doc
from easydistill.report.collect import Facts, StageFacts
from easydistill.report.values import as_counts

_WORDS = {
    "thoughts": "An assistant's thoughts",
    "tool call": "Tool calls, as context",
    "tools": "The tools of the chat",
    "tool result": "A tool's result",
    "system": "A system text",
    "developer": "A developer's text",
    "turn": "The text of an answer",
    "text": "The text of another message",
}


def not_shown(facts: Facts) -> Iterator[doc.Section]:
    """The section; none if the template shows the rows whole."""
    stage = next((stage for stage in facts.stages if _counts(stage) or _lost(stage)), None)
    if stage is None:
        return
    total = stage.left or 1
    rows = [
        doc.row(_WORDS.get(kind, kind), f"{count:,}", f"{count / total:.0%}") for kind, count in _counts(stage).items()
    ]
    blocks: list[doc.Block] = [doc.Text("The student's chat template leaves these parts out of the rows.")]
    if rows:
        blocks.append(doc.Table("Part", doc.columns("Rows", "Of all rows"), tuple(rows), style="tight"))
    if lost := _lost(stage):
        blocks.append(doc.Text(f"Answers that are context only, since they could not be found in the text: {lost:,}."))
    yield doc.Section("not-shown", "What the chat template does not show", "Not shown", tuple(blocks))


def _counts(stage: StageFacts) -> dict[str, int]:
    return {kind: count for kind, count in as_counts(stage.metrics.get("not_shown")).items() if count}


def _lost(stage: StageFacts) -> int:
    return int(as_float(stage.metrics.get("lost_turns")) or 0)
