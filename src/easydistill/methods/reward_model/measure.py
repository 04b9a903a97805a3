"""Scores of pairs under a reward model, and the figures that follow from them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import StatisticsError, correlation, fmean
from typing import TYPE_CHECKING, Any

import torch

from easydistill.data.batches import batches_by_length, padded
from easydistill.engine.interrupt import StopSignal
from easydistill.methods.reward_model.rows import RewardRow

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

MAX_BATCH_ROWS = 64
BATCH_TOKENS = 16_384
"""Tokens, padding included, that are scored at once."""


@dataclass(frozen=True)
class RowScore:
    """Scores of a pair's two answers under one model, in log-odds."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected


@torch.no_grad()
def score_rows(
    model: Any, rows: Sequence[RewardRow], pad: int, stop: StopSignal, vision: Vision | None = None
) -> list[RowScore]:
    """Scores of both answers of every row.

    Args:
        model: a sequence classifier of one label, in eval mode.
        vision: of a model that sees images.

    Raises:
        Interrupted: `stop` was requested.
    """
    chats = [chat for row in rows for chat in row.sequences]
    images = [row.images for row in rows for _ in row.sequences]
    found = [0.0] * len(chats)
    device = next(model.parameters()).device
    for batch in batches_by_length([len(chat) for chat in chats], MAX_BATCH_ROWS, BATCH_TOKENS, 0):
        stop.raise_if_requested()
        ids_BT = torch.tensor(padded([chats[at] for at in batch], pad), device=device)
        seen_BT = torch.tensor(padded([[1] * len(chats[at]) for at in batch], 0), device=device)
        shown = {} if vision is None else vision.inputs(ids_BT, [(chats[at], images[at]) for at in batch])
        score_B1 = model(input_ids=ids_BT, attention_mask=seen_BT, use_cache=False, **shown).logits
        for at, score in zip(batch, score_B1[:, 0].float().tolist(), strict=True):
            found[at] = score
    return [RowScore(found[2 * number], found[2 * number + 1]) for number in range(len(rows))]


# --- figures ------------------------------------------------------------------------------------------------


def measure(rows: Sequence[RewardRow], scores: Sequence[RowScore]) -> dict[str, float | None]:
    """Figures of a model on held-out pairs; None if the pairs do not determine one.

    - `pair_accuracy`: share of pairs whose chosen answer scores higher; a tie counts half.
    - `shorter_accuracy`: the same over the pairs whose chosen answer has fewer tokens than the rejected one.
    - `score_margin`: mean score of chosen answers less that of rejected ones, in log-odds.
    - `mean_score`: mean of all scores.
    - `length_pearson`, `length_spearman`: correlation of an answer's score with its length in tokens, over all answers.
    - `best_of_n_gain`: see `best_of_n`.
    """
    harder = [score for row, score in zip(rows, scores, strict=True) if row.answer_tokens[0] < row.answer_tokens[1]]
    lengths = [float(tokens) for row in rows for tokens in row.answer_tokens]
    values = [value for score in scores for value in (score.chosen, score.rejected)]
    best = best_of_n(rows, scores)
    return {
        "pair_accuracy": fmean(map(_won, scores)),
        "shorter_accuracy": fmean(map(_won, harder)) if harder else None,
        "score_margin": fmean(score.margin for score in scores),
        "mean_score": fmean(values),
        "length_pearson": pearson(values, lengths),
        "length_spearman": spearman(values, lengths),
        "best_of_n_gain": best.gain if best else None,
    }


def measure_gaps(rows: Sequence[RewardRow], scores: Sequence[RowScore]) -> dict[str, dict[str, float]]:
    """Accuracy and margin by kind of pair; empty if there is only one kind."""
    groups: dict[str, list[RowScore]] = defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        groups[row.gap].append(score)
    if len(groups) < 2:
        return {}
    return {
        gap: {
            "pairs": len(some),
            "pair_accuracy": fmean(map(_won, some)),
            "score_margin": fmean(score.margin for score in some),
        }
        for gap, some in sorted(groups.items())
    }


def describe(rows: Sequence[RewardRow], scores: Sequence[RowScore]) -> dict[str, Any]:
    """Properties of the pairs themselves, which training does not change."""
    best = best_of_n(rows, scores)
    tokens = [row.answer_tokens for row in rows]
    return {
        "chosen_shorter": sum(chosen < rejected for chosen, rejected in tokens),
        "length_difference": fmean(chosen - rejected for chosen, rejected in tokens),
        **({"best_of_n": asdict(best)} if best else {}),
    }


@dataclass(frozen=True)
class BestOfN:
    """The gain from choosing answers by score, in the unit of the known quality."""

    prompts: int
    n: float
    """Mean number of answers per prompt."""
    gain: float
    """Quality of the answer with the highest score less the mean of the prompt's answers, averaged over prompts."""
    most: float
    """The gain from choosing by the known quality itself."""


def best_of_n(rows: Sequence[RewardRow], scores: Sequence[RowScore]) -> BestOfN | None:
    """Over the prompts with two or more different answers of known quality; None if there are none.

    An answer in several pairs counts once, with its mean quality; ties for the highest score count with their mean.
    """
    prompts = [answers for answers in _answers_by_prompt(rows, scores) if len(answers) > 1]
    if not prompts:
        return None
    gains, most = [], []
    for found in prompts:
        highest, usual = max(value for value, _ in found), fmean(truth for _, truth in found)
        gains.append(fmean(truth for value, truth in found if value == highest) - usual)
        most.append(max(truth for _, truth in found) - usual)
    return BestOfN(len(prompts), fmean(map(len, prompts)), fmean(gains), fmean(most))


def _answers_by_prompt(rows: Sequence[RewardRow], scores: Sequence[RowScore]) -> list[list[tuple[float, float]]]:
    """(score, mean known quality) of each answer of known quality, by prompt."""
    answers: dict[str, dict[tuple[int, ...], tuple[float, list[float]]]] = defaultdict(dict)
    for row, score in zip(rows, scores, strict=True):
        if row.truth is None:
            continue
        sides = ((row.chosen, score.chosen, row.truth[0]), (row.rejected, score.rejected, row.truth[1]))
        for chat, value, truth in sides:
            answers[row.prompt].setdefault(tuple(chat), (value, []))[1].append(truth)
    return [[(value, fmean(truths)) for value, truths in found.values()] for found in answers.values()]


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson correlation; None if a list is constant or too short."""
    try:
        return correlation(xs, ys)
    except StatisticsError:
        return None


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman correlation; ties get the mean of their ranks."""
    return pearson(_ranks(xs), _ranks(ys))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    # The midpoint of the places around equal values is the mean of their ranks.
    return [(bisect_left(ordered, value) + bisect_right(ordered, value)) / 2 for value in values]


def _won(score: RowScore) -> float:
    return 0.5 if score.margin == 0 else float(score.margin > 0)
