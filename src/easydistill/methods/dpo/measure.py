"""Log-probabilities of pairs under a model, and the figures of a preference training that follow from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from easydistill.engine.interrupt import StopSignal
from easydistill.methods.dpo.rows import PairRow
from easydistill.methods.shared.rollouts import LocalScores

SCORED_TOGETHER = 32


@dataclass(frozen=True)
class PairScore:
    """Log-probabilities of a pair's two answers under one model, in nats."""

    chosen: float
    rejected: float


def score_pairs(scores: LocalScores, pairs: Sequence[PairRow], stop: StopSignal) -> list[PairScore]:
    """Log-probabilities of both answers of every pair, summed over their tokens, end token included.

    Raises:
        Interrupted: `stop` was requested.
    """
    found: list[PairScore] = []
    for at in range(0, len(pairs), SCORED_TOGETHER):
        stop.raise_if_requested()
        some = pairs[at : at + SCORED_TOGETHER]
        shown = [pair.images for pair in some for _ in pair.sequences]
        logprobs = scores.score([side for pair in some for side in pair.sides], stop, shown)
        skipped = [positions for pair in some for positions in pair.unlearned]
        sums = [
            math.fsum(value for at, value in enumerate(tokens) if at not in left_out)
            for tokens, left_out in zip(logprobs, skipped, strict=True)
        ]
        found += [PairScore(*sums[2 * index : 2 * index + 2]) for index in range(len(some))]
    return found


def measure(pairs: Sequence[PairRow], now: Sequence[PairScore], start: Sequence[PairScore]) -> dict[str, float]:
    """Figures of a model on pairs.

    - `preferred`: share of pairs whose chosen answer is more probable per token; a tie counts half.
    - `reward_accuracy`: share whose implicit reward log π/π_ref is larger for the chosen answer; a tie counts half.
    - `margin`: mean difference of the two rewards, in nats, without β.
    - `chosen_change`, `rejected_change`: mean log π/π_ref of the chosen and the rejected answer.
    - `length_difference`: mean length of the chosen answer less that of the rejected one, in tokens.

    Args:
        now: scores under the model.
        start: scores under the reference.
    """
    up = [score.chosen - before.chosen for score, before in zip(now, start, strict=True)]
    down = [score.rejected - before.rejected for score, before in zip(now, start, strict=True)]
    margins = [better - worse for better, worse in zip(up, down, strict=True)]
    per_token = [
        score.chosen / pair.learned_tokens[0] - score.rejected / pair.learned_tokens[1]
        for pair, score in zip(pairs, now, strict=True)
    ]
    return {
        "preferred": fmean(map(_won, per_token)),
        "reward_accuracy": fmean(map(_won, margins)),
        "margin": fmean(margins),
        "chosen_change": fmean(up),
        "rejected_change": fmean(down),
        "length_difference": fmean(pair.learned_tokens[0] - pair.learned_tokens[1] for pair in pairs),
    }


def measure_gaps(
    pairs: Sequence[PairRow], now: Sequence[PairScore], start: Sequence[PairScore]
) -> dict[str, dict[str, float]]:
    """The figures by kind of pair; empty if there is only one kind."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        groups[pair.gap].append(index)
    if len(groups) < 2:
        return {}
    found: dict[str, dict[str, float]] = {}
    for gap, chosen in sorted(groups.items()):
        some, before = [now[index] for index in chosen], [start[index] for index in chosen]
        found[gap] = {"pairs": len(chosen), **measure([pairs[index] for index in chosen], some, before)}
    return found


def _won(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
