"""Rows → the blocks of tokens to which formats of few bits fit their rounding.

Each row is a chat as the student reads it, whole. Rows stand one behind the other and are cut to blocks of one length,
since auto-round skips shorter ones; what is left over at the end is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from easydistill.contracts.export_format import Calibration, Source
from easydistill.data.records import count_reasons
from easydistill.errors import DataError
from easydistill.exporting.rows import CalibrationRows
from easydistill.methods.shared.rendering import student_renderer
from easydistill.methods.shared.rows import render_all
from easydistill.models.limits import Limits

if TYPE_CHECKING:
    from easydistill.data.records import Sample
    from easydistill.engine.stage import StageContext

LOG = "auto_round.log"
_LEAST = 32
"""Tokens of the shortest block that is worth fitting to."""


def calibration_of(
    rows: CalibrationRows, source: Source, compared: Sequence[Sample], context: StageContext
) -> Calibration:
    """
    Args:
        compared: rows that tell how good the rounding is, and to which it is not fitted.

    Raises:
        DataError: too little is left.
    """
    settings = rows.settings
    samples, _, refused = rows.known.read(context)
    known = {_prompt(sample) for sample in compared}
    others = [sample for sample in samples if _prompt(sample) not in known]
    renderer = student_renderer(rows.known.dataset, source.tokenizer, source.ends, context)
    limits = Limits.of_reference(source.directory)
    rendered, rejected = render_all(renderer, others, settings.max_length, "calibration", limits)
    if lost := [*refused, *rejected]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in count_reasons(lost).items())
        context.notice([f"rows to which no rounding is fitted: {reasons}"])
    blocks = blocks_of((row.ids for _, row in rendered), settings.max_length, settings.max_blocks)
    if not blocks:
        left = f"{len(others):,} of {len(samples):,} rows are not among those that are compared"
        hint = "name more rows at calibration.labeled_path, or set dataset.max_samples"
        raise DataError(f"too few tokens to fit the rounding to: {left}\n    → {hint}")
    return Calibration(
        blocks, settings.iterations, settings.batch_size, context.directory / LOG, context.stop.raise_if_requested
    )


def _prompt(sample: Sample) -> str:
    return json.dumps([*sample.prompt], sort_keys=True, ensure_ascii=False, default=str)


def blocks_of(rows: Iterable[Sequence[int]], length: int, most: int) -> list[list[int]]:
    """Blocks of `length` ids; one shorter one if all rows together are not that long; none of fewer than 32."""
    stream: list[int] = []
    for ids in rows:
        stream += [int(each) for each in ids]
        if len(stream) >= length * most:
            break
    length = min(length, len(stream))
    if length < _LEAST:
        return []
    return [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)][:most]
