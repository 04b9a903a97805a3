"""Means with intervals, paired differences, and tests. Everything is exact or seeded, so a rerun gives equal figures.

A problem's score is the mean of its replies' scores: a figure for each problem, over which all intervals are taken.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 1000
_SEED = 12345


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_record(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def ratio(points: Sequence[float], totals: Sequence[float]) -> float:
    """Σ points / Σ totals; 0 of nothing."""
    total = sum(totals)
    return sum(points) / total if total else 0.0


def bootstrap(
    points: Sequence[float], totals: Sequence[float] | None = None, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """The ratio of sums over problems, with the 2.5 and 97.5 percentiles of resampled problems (Efron 1979).

    Where all problems have one score, resampling tells nothing. Then the interval says how many others may have been
    missed: with n alike, a share of up to 1 − 0.025^(1/n) has others with 97.5 % confidence (Clopper and Pearson 1934).

    Args:
        points, totals: of each problem, what it gained of how many; without totals, the mean of the points.
        bounds: least and largest score that a problem can have.
    """
    count = len(points)
    totals = [1.0] * count if totals is None else totals
    mean = ratio(points, totals)
    if count < 2:
        return Interval(mean, mean, mean)
    alike = len({point / total for point, total in zip(points, totals, strict=True) if total}) == 1
    if alike and bounds[0] <= mean <= bounds[1]:
        missed = 1 - 0.025 ** (1 / count)
        return Interval(mean, mean - missed * (mean - bounds[0]), mean + missed * (bounds[1] - mean))
    generator = random.Random(_SEED)
    if all(total == 1 for total in totals):
        means = sorted(sum(generator.choices(points, k=count)) / count for _ in range(RESAMPLES))
    else:
        pairs = list(zip(points, totals, strict=True))
        means = sorted(ratio(*zip(*generator.choices(pairs, k=count), strict=True)) for _ in range(RESAMPLES))
    return Interval(mean, _percentile(means, 0.025), _percentile(means, 0.975))


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p of McNemar's test: under the null hypothesis a problem that flips does so either way alike.

    Args:
        gained: problems that only the model solves.
        lost: problems that only the baseline solves.
    """
    flips = gained + lost
    if not flips:
        return 1.0
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**flips))


def sign_flips(differences: Sequence[float]) -> float:
    """The two-sided p of a paired permutation test: each problem's difference could have had the other sign.

    By Monte Carlo; counts the observed assignment too, so it is never 0 (Phipson and Smyth 2010).
    """
    moved = [difference for difference in differences if difference]
    if not moved:
        return 1.0
    observed = abs(sum(moved)) - 1e-12
    generator = random.Random(_SEED)
    extreme = sum(
        abs(sum(value if generator.getrandbits(1) else -value for value in moved)) >= observed for _ in range(RESAMPLES)
    )
    return (extreme + 1) / (RESAMPLES + 1)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate of the probability that one of k replies is right: 1 − C(n − c, k) / C(n, k) (Chen et al.
    2021, equation 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Paired:
    """A model against the baseline, on the same problems."""

    difference: Interval
    gained: int
    lost: int
    p: float
    test: str

    def as_record(self) -> dict[str, object]:
        record: dict[str, object] = {"difference": self.difference.as_record(), "gained": self.gained}
        return record | {"lost": self.lost, "p": self.p, "test": self.test}


def compare(model: Sequence[float], baseline: Sequence[float]) -> Paired:
    """The paired difference of two models' scores by problem.

    McNemar's exact test where every problem is simply right or wrong, else a permutation test.
    """
    differences = [one - other for one, other in zip(model, baseline, strict=True)]
    gained, lost = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    difference = bootstrap(differences, bounds=(-1.0, 1.0))
    binary = all(value in (0.0, 1.0) for value in (*model, *baseline))
    if binary:
        return Paired(difference, gained, lost, mcnemar(gained, lost), "McNemar, exact")
    return Paired(difference, gained, lost, sign_flips(differences), "paired permutation")
