"""Which of the possible pairs are taken.

Of each row at most `most` pairs are taken: first those whose answers are in no pair taken so far, then those with the
largest margin, then by hash. With length balancing, if a row offers both pairs whose chosen answer is longer and pairs
whose chosen answer is shorter, the kind that is rarer so far is preferred. The choice depends on seed, row ids and the
pairs alone, not on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import correlation, fmean
from typing import Any

from easydistill.data.records import draw_key
from easydistill.synthesis.operators.preference_data.pairs import Pair, RowPairs
from easydistill.synthesis.replies import Unusable


def cap_lengths(found: RowPairs, ratio: float) -> None:
    """Drop a row's pairs whose longer answer is more than `ratio` times as long as the shorter one."""
    kept: list[Pair] = []
    for pair in found.pairs:
        if pair.length_ratio > ratio:
            lengths = f"{pair.chosen.length} and {pair.rejected.length} words"
            found.dropped_pairs.append(Unusable("length_ratio", f"{pair.name}: {lengths}"))
        else:
            kept.append(pair)
    found.pairs = kept


def choose(possible: Mapping[str, Sequence[Pair]], most: int, seed: int, *, balanced: bool) -> dict[str, list[Pair]]:
    """At most `most` pairs of each row, by the row's id; see the module's docstring.

    The number of pairs per row does not depend on `balanced`.
    """
    taken: dict[str, list[Pair]] = {}
    tilt = 0
    # Rows that offer a choice come last, so that they can balance the others.
    for row in sorted(possible, key=lambda row: (_offers_choice(possible[row], most), draw_key(seed, row))):
        left, of_row = list(possible[row]), list[Pair]()
        while left and len(of_row) < most:
            best = min(left, key=lambda pair: _order(pair, of_row, tilt if balanced else 0, row, seed))
            left.remove(best)
            of_row.append(best)
            tilt += best.direction
        taken[row] = of_row
    return taken


def _offers_choice(pairs: Sequence[Pair], most: int) -> bool:
    return len(pairs) > most and len({pair.direction for pair in pairs}) > 1


def _order(pair: Pair, taken: Sequence[Pair], tilt: int, row: str, seed: int) -> tuple[int, int, float, bytes]:
    adds_to_tilt = pair.direction * ((tilt > 0) - (tilt < 0))
    used = [answer for other in taken for answer in (other.chosen, other.rejected)]
    uses = used.count(pair.chosen) + used.count(pair.rejected)
    return adds_to_tilt, uses, -(pair.margin or 0.0), draw_key(seed, f"{row}: {pair.name}")


def surplus(taken: Mapping[str, Sequence[Pair]], seed: int) -> dict[str, list[Pair]]:
    """The pairs to drop so that the chosen answer is longer as often as it is shorter: those with the smallest margin
    among the more frequent kind."""
    every = [(row, pair) for row, pairs in taken.items() for pair in pairs]
    tilt = sum(pair.direction for _, pair in every)
    frequent = [item for item in every if item[1].direction * tilt > 0]
    frequent.sort(key=lambda item: (item[1].margin or 0.0, draw_key(seed, f"{item[0]}: {item[1].name}")))
    dropped: dict[str, list[Pair]] = {}
    for row, pair in frequent[: abs(tilt)]:
        dropped.setdefault(row, []).append(pair)
    return dropped


def length_facts(pairs: Iterable[Pair]) -> dict[str, Any]:
    """How the lengths of chosen and rejected answers differ, which a model could learn instead of their content."""
    pairs = list(pairs)
    if not pairs:
        return {"pairs": 0}
    scored = [(pair.margin, pair.difference) for pair in pairs if pair.margin is not None]
    varied = len({margin for margin, _ in scored}) > 1 and len({difference for _, difference in scored}) > 1
    return {
        "pairs": len(pairs),
        "chosen_longer": round(fmean(pair.direction > 0 for pair in pairs), 4),
        "chosen_shorter": round(fmean(pair.direction < 0 for pair in pairs), 4),
        "mean_difference": round(fmean(pair.difference for pair in pairs), 4),
        # Pearson's; None if all margins, or all differences, are equal.
        "margin_correlation": round(correlation(*zip(*scored, strict=True)), 4) if varied else None,
    }
