"""Labelled samples → rows of tokens to train on, in memory as long as they are few, else on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from easydistill.data.chat import ChatRenderer
from easydistill.data.records import Rejection, Sample
from easydistill.data.spool import Rows, Spool
from easydistill.methods.distil.rows import wrote_itself
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.shared.rendering import LostThoughts, RenderingFigures
from easydistill.methods.shared.rows import UNLIMITED, rendered_one_by_one
from easydistill.models.limits import Limits

MOST_TOKENS_IN_MEMORY = 1 << 24
"""Tokens of rows that are kept in memory, five bytes each; the rows of longer sets are read from disk."""


@dataclass
class TrainingRows:
    """Rows of tokens, and what was counted as they were rendered."""

    rows: Rows[TokenRow] = field(default_factory=list)
    figures: RenderingFigures = field(default_factory=RenderingFigures)
    thoughts: LostThoughts = field(default_factory=LostThoughts)
    images: str = ""
    """A hash of which rows have which images; empty if none has any."""


def training_rows(
    renderer: ChatRenderer,
    samples: Sequence[Sample],
    max_length: int,
    stage: str,
    directory: Path,
    limits: Limits = UNLIMITED,
) -> tuple[TrainingRows, list[Rejection]]:
    """What `render_all` keeps and rejects, as rows to train on.

    Args:
        directory: where the rows of large sets are put, in a file without a name, which is gone with the process. A
            stage that goes on renders them again: the same rows, as its inputs are the same.
    """
    found = TrainingRows()
    rejected: list[Rejection] = []
    shown = hashlib.sha256()
    for item in rendered_one_by_one(renderer, samples, max_length, stage, limits):
        if isinstance(item, Rejection):
            rejected.append(item)
            continue
        sample, row = item
        found.figures.add(row)
        if row.images:
            shown.update(f"{sample.id} {' '.join(row.images)}\n".encode())
            found.images = shown.hexdigest()
        found.thoughts.add(sample, row.missing)
        found.rows.append(TokenRow(sample.id, row.ids_T, row.mask_T, wrote_itself(sample), row.images))
        if found.figures.tokens > MOST_TOKENS_IN_MEMORY and not isinstance(found.rows, Spool):
            found.rows = Spool(found.rows, directory)
    return found, rejected
