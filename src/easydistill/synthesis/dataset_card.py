"""The dataset card of an operator's rows: what they hold, where they come from, what was rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easydistill.data.manifest import RowCounts
from easydistill.data.records import Sample
from easydistill.data.writing import written_meta


def dataset_card(
    operator: str, rows: Sequence[Sample], counts: RowCounts, metrics: Mapping[str, Any], *, made: bool, pairs: bool
) -> str:
    """The card as Markdown, with the YAML header that dataset hubs read.

    Args:
        made: True if a model wrote or judged the rows, False if they were only selected.
        pairs: whether the rows are pairs of answers.
    """
    origin = "made by the operator `{}`. A model wrote them: check its licence and the rows before publishing."
    if not made:
        origin = "chosen by the operator `{}`, which asks no model. Check the rows and their licence before publishing."
    languages = metrics["diversity"]["languages"]
    content = "`messages` holds the chat"
    fields = sorted({name for row in rows for name in written_meta(row)} - ({"rejected"} if pairs else set()))
    if pairs:
        content = "`prompt` holds the chat, `chosen` the better answer to it, `rejected` the worse one, all as messages"
    rejected = "\n".join(f"| {reason} | {count} |" for reason, count in counts.rejected.items())
    parts = [
        "---",
        *(["language:", *(f"- {name}" for name in languages)] if languages else []),
        f"size_categories:\n- {_size(len(rows))}",
        "configs:\n- config_name: default\n  data_files: labeled.parquet",
        "---",
        f"# {operator.replace('_', ' ').capitalize()}",
        "",
        f"{counts.left} rows of {counts.entered} candidates, {origin.format(operator)}",
        "",
        content + (f"; other fields: {', '.join(f'`{name}`' for name in fields)}." if fields else "."),
        "",
        f"| rejected | rows |\n|---|---|\n{rejected}" if rejected else "Nothing was rejected.",
    ]
    return "\n".join(parts) + "\n"


def _size(rows: int) -> str:
    """The hub's size category for a number of rows."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return name
    return "n>1M"
