"""A dataset card: what a set of rows is, where it came from, what was refused on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easydistill.data.formats import written_meta
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Sample


def dataset_card(
    operator: str, rows: Sequence[Sample], counts: RowCounts, metrics: Mapping[str, Any], *, made: bool, pairs: bool
) -> str:
    """The card as Markdown, with the header that dataset hubs read.

    Args:
        made: whether a model wrote or judged the rows, or they were only chosen.
        pairs: whether they are pairs of answers.
    """
    origin = "made by the operator `{}`. A model wrote them: check its licence, and the rows, before you publish them."
    if not made:
        origin = (
            "chosen by the operator `{}`, which asks no model. Check them, and their licence, before you publish them."
        )
    languages = metrics["diversity"]["languages"]
    holds = "`messages` holds the chat"
    fields = sorted({name for row in rows for name in written_meta(row)} - ({"rejected"} if pairs else set()))
    if pairs:
        holds = "`prompt` holds the chat, `chosen` the better answer to it, `rejected` the worse one, each as messages"
    refused = "\n".join(f"| {reason} | {count} |" for reason, count in counts.rejected.items())
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
        holds + (f"; beside it: {', '.join(f'`{name}`' for name in fields)}." if fields else "."),
        "",
        f"| refused | rows |\n|---|---|\n{refused}" if refused else "Nothing was refused.",
    ]
    return "\n".join(parts) + "\n"


def _size(rows: int) -> str:
    """The hub's word for a number of rows."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return name
    return "n>1M"
