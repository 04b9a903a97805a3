"""Scoring rows with a judge, as the scoring operators do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from easydistill.contracts.operator import Ask, OperatorConfig, Reply, Result, Steps
from easydistill.data.records import Rejection, Sample
from easydistill.synthesis.replies import Scores, Unusable, gather, rejection, scores_of


def score_rows(
    stage: str,
    config: OperatorConfig,
    rows: Sequence[Sample],
    scores: Scores,
    question: Callable[[Sample], Ask],
) -> Steps[Result]:
    """Have every row judged and add the scores to its `meta`. A reply that does not parse rejects the row."""
    replies = yield [question(row) for row in rows]
    result = gather(_scored(stage, config, row, scores, reply) for row, reply in zip(rows, replies, strict=True))
    result.facts["scores"] = distribution(result.accepted, scores)
    return result


def distribution(rows: Sequence[Sample], scores: Scores) -> dict[str, dict[str, int]]:
    """How often each value of each score was given."""
    counts = {name: Counter(row.meta[name] for row in rows) for name in scores}
    return {name: {str(value): count for value, count in sorted(found.items())} for name, found in counts.items()}


def _scored(stage: str, config: OperatorConfig, row: Sample, scores: Scores, reply: Reply) -> Sample | Rejection:
    try:
        found = scores_of(reply, scores, config.reply)
    except Unusable as problem:
        return rejection(row.id, stage, problem, reply)
    return replace(row, meta={**row.meta, **found})
