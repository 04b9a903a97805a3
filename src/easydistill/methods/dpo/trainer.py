"""Training on pairs of answers: rows of tokens, what is measured of them, and the loop's entry.

The loss and its step are TRL's (`preferences_trl.py`, which alone knows TRL). Reference log-probabilities are those of
the student as it starts; they are computed once, before the first step, and journalled: a resumed run reads them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from easydistill.engine.interrupt import StopSignal
from easydistill.methods.shared.rollouts import LocalScores

SCORED_TOGETHER = 32
PLAIN = "pairs"
"""Name of the gap of pairs that bring none."""


@dataclass(frozen=True)
class PairRow:
    """A tokenised pair. Answers include their end token."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    beta: float | None = None
    gap: str = PLAIN
    """Which kind of pair it is; figures are told apart by it."""
    cut: bool = False
    """Whether one of its answers was too long and lost its end."""

    @property
    def longest(self) -> int:
        """Tokens of the longer of its two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def sides(self) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
        """(token ids, where the answer starts) of both sequences, the chosen one first."""
        start = len(self.prompt)
        return (self.prompt + self.chosen, start), (self.prompt + self.rejected, start)


@dataclass(frozen=True)
class PairScore:
    """log p of a pair's two answers under one model, in nats."""

    chosen: float
    rejected: float


def score_pairs(scores: LocalScores, pairs: Sequence[PairRow], stop: StopSignal) -> list[PairScore]:
    """log p of both answers of every pair: sums over their tokens, end token included.

    Raises:
        Interrupted: `stop` was requested.
    """
    found: list[PairScore] = []
    for at in range(0, len(pairs), SCORED_TOGETHER):
        stop.raise_if_requested()
        some = pairs[at : at + SCORED_TOGETHER]
        sums = [math.fsum(tokens) for tokens in scores.score([side for pair in some for side in pair.sides], stop)]
        found += [PairScore(*sums[2 * index : 2 * index + 2]) for index in range(len(some))]
    return found


def measure(pairs: Sequence[PairRow], now: Sequence[PairScore], start: Sequence[PairScore]) -> dict[str, float]:
    """Figures of a model on pairs.

    - `preferred`: share of pairs whose chosen answer is the likelier one per token; a tie is half.
    - `reward_accuracy`: share whose implicit reward log π/π_ref is larger for the chosen answer; a tie is half.
    - `margin`: mean difference of the two rewards, in nats, before any β.
    - `chosen_change`, `rejected_change`: mean log π/π_ref of either answer.
    - `length_difference`: mean tokens of the chosen answer less the rejected one's.

    Args:
        now: scores of the model.
        start: scores of the reference.
    """
    up = [score.chosen - before.chosen for score, before in zip(now, start, strict=True)]
    down = [score.rejected - before.rejected for score, before in zip(now, start, strict=True)]
    margins = [better - worse for better, worse in zip(up, down, strict=True)]
    per_token = [
        score.chosen / len(pair.chosen) - score.rejected / len(pair.rejected)
        for pair, score in zip(pairs, now, strict=True)
    ]
    return {
        "preferred": fmean(map(_won, per_token)),
        "reward_accuracy": fmean(map(_won, margins)),
        "margin": fmean(margins),
        "chosen_change": fmean(up),
        "rejected_change": fmean(down),
        "length_difference": fmean(len(pair.chosen) - len(pair.rejected) for pair in pairs),
    }


def measure_gaps(
    pairs: Sequence[PairRow], now: Sequence[PairScore], start: Sequence[PairScore]
) -> dict[str, dict[str, float]]:
    """The figures of each kind of pair; nothing where there is only one kind."""
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
