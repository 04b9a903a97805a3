"""Scores of replies → the figures of each model and task, and comparisons with the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from easydistill.contracts.task import UNJUDGED, SampledTask
from easydistill.task_evaluation.exams import Taken
from easydistill.task_evaluation.statistics import bootstrap, compare, pass_at_k

FLIPS_KEPT = 12
"""Most flipped answers of each direction that are kept with their texts."""
SCORES, REPLIES = "scores.json", "replies.jsonl"
"""Files of the stage: the figures, and every reply with its score."""


@dataclass(frozen=True)
class TaskResult:
    """What one model did in one task."""

    model: str
    task: str
    taken: Sequence[Taken]

    def by_problem(self) -> dict[str, list[Taken]]:
        """The replies to each problem, by its id."""
        found: dict[str, list[Taken]] = {}
        for item in self.taken:
            found.setdefault(item.problem.id, []).append(item)
        return found

    def values(self) -> dict[str, float]:
        """Each problem's score: the mean of its replies'."""
        return {name: fmean(item.score.value for item in items) for name, items in self.by_problem().items()}


def figures(result: TaskResult, config: SampledTask) -> dict[str, Any]:
    """The figures of one model in one task, as JSON."""
    problems = result.by_problem()
    values = result.values()
    # A server that counts no tokens leaves 0; so does a request without a reply.
    tokens = [item.answered.tokens for item in result.taken if item.answered.tokens]
    record: dict[str, Any] = {
        "problems": len(problems),
        "replies": len(result.taken),
        "score": bootstrap(list(values.values())).as_record(),
        "cut": sum(item.answered.reply.cut for item in result.taken),
        "empty": sum(not item.answered.reply.text.strip() for item in result.taken),
        "unjudged": sum(item.score.why == UNJUDGED for item in result.taken),
        "failed": sum(item.answered.failure is not None for item in result.taken),
        "tokens_per_reply": fmean(tokens) if tokens else None,
    }
    if config.pass_at:
        record["pass_at"] = {str(k): _pass_at(problems, k) for k in config.pass_at}
    if parts := _parts(problems):
        record["parts"] = parts
    return record


def _pass_at(problems: Mapping[str, Sequence[Taken]], k: int) -> dict[str, float]:
    estimates = [pass_at_k(len(items), sum(item.score.value >= 1 for item in items), k) for items in problems.values()]
    return bootstrap(estimates).as_record()


def _parts(problems: Mapping[str, Sequence[Taken]]) -> dict[str, dict[str, float]]:
    """Ratios of sums over the replies that have a part; resampled by problem."""
    names = dict.fromkeys(name for items in problems.values() for item in items for name in item.score.parts)
    found = {}
    for name in names:
        pairs = [[item.score.parts[name] for item in items if name in item.score.parts] for items in problems.values()]
        held = [pair for pair in pairs if pair]
        points = [sum(gained for gained, _ in pair) for pair in held]
        totals = [sum(total for _, total in pair) for pair in held]
        found[name] = bootstrap(points, totals).as_record()
    return found


def comparison(result: TaskResult, baseline: TaskResult) -> dict[str, Any]:
    """A model against the baseline on the problems that both answered, with flips of either direction."""
    own, other = result.values(), baseline.values()
    shared = [name for name in own if name in other]
    paired = compare([own[name] for name in shared], [other[name] for name in shared])
    gained = [name for name in shared if own[name] > other[name]]
    lost = [name for name in shared if own[name] < other[name]]
    return {
        "against": baseline.model,
        "problems": len(shared),
        **paired.as_record(),
        "flips": {
            "gained": _texts(result, baseline, gained[:FLIPS_KEPT], pick=(min, max)),
            "lost": _texts(result, baseline, lost[:FLIPS_KEPT], pick=(max, min)),
        },
    }


def _texts(
    result: TaskResult, baseline: TaskResult, names: Sequence[str], pick: tuple[Callable[..., Taken], ...]
) -> list[dict[str, Any]]:
    """The flipped problems, with a reply of each model; of several samples the ones that show the flip.

    Args:
        pick: what chooses the baseline's reply and the model's by their scores: `min` or `max`.
    """
    own, other = result.by_problem(), baseline.by_problem()
    return [
        {
            "problem": name,
            "prompt": [dict(message) for message in own[name][0].problem.messages],
            "reference": own[name][0].problem.reference,
            "before": pick[0](other[name], key=_value).answered.reply.text,
            "after": pick[1](own[name], key=_value).answered.reply.text,
        }
        for name in names
    ]


def _value(item: Taken) -> float:
    return item.score.value


def gap_closed(before: float, after: float, teacher: float) -> float | None:
    """The share of the gap between student and teacher that training closed; None where there is no gap to close."""
    return (after - before) / (teacher - before) if teacher > before else None


def reply_row(result: TaskResult, item: Taken) -> dict[str, Any]:
    """A line of `replies.jsonl`."""
    answered, score = item.answered, item.score
    row: dict[str, Any] = {
        "model": result.model,
        "task": result.task,
        "problem": item.problem.id,
        "sample": item.sample,
        "value": score.value,
        "answer": score.answer,
        "reference": item.problem.reference,
        "why": score.why,
        "cut": answered.reply.cut,
        "tokens": answered.tokens,
        "reply": answered.reply.text,
        "request": answered.key,
    }
    if answered.thoughts:
        row["thoughts"] = answered.thoughts
    if score.parts:
        row["parts"] = {name: list(pair) for name, pair in score.parts.items()}
    if answered.failure is not None:
        row["failed"] = answered.failure.reason
    return row
