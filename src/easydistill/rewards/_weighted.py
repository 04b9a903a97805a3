"""Several rewards as one: R(y) = Σᵢ wᵢ · rᵢ(y), and each rᵢ by name, for the log.

A reward that abstains contributes 0 to the sum and is counted as abstained. If every reward with a non-zero weight
abstains, the total is None, and the trainer leaves the rollout out instead of learning from an invented 0.

An answer must not gain by making itself impossible to judge: for a reward that is always negative, 0 would be the best
value there is. Such an answer gets the lowest value that the reward gave to any answer scored in the same call. If it
gave none, the total is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType

from easydistill.contracts.reward import UNJUDGED, Reward, Rollout
from easydistill.errors import EasyDistillError


@dataclass(frozen=True)
class RewardScores:
    """The rewards of a list of rollouts, in the same order."""

    totals: list[float | None]
    """Weighted sums. None if every weighted reward abstained, or if one of them could not judge any of the answers."""
    by_reward: dict[str, list[float | None]]
    """Each reward's values before weighting. None where it abstained or could not judge."""

    def summary(self) -> dict[str, float]:
        """Values for the log: means without abstentions as `reward` and `reward/<name>`; shares of abstentions as
        `reward/abstained` and `reward/<name>/abstained`. There is no mean if there are no values."""
        found: dict[str, float] = {}
        for name, values in (("reward", self.totals), *((f"reward/{name}", v) for name, v in self.by_reward.items())):
            given = [value for value in values if value is not None]
            if given:
                found[name] = fmean(given)
            if values:
                found[f"{name}/abstained"] = 1 - len(given) / len(values)
        return found


class WeightedRewards:
    """The weighted sum of rewards, itself a `Reward`.

    Args:
        rewards: by name; they are called one after the other, in this order.
        weights: by the same names.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        assert rewards.keys() == weights.keys(), "each reward has its weight"
        self._rewards, self._weights = dict(rewards), dict(weights)

    def score(self, rollouts: Sequence[Rollout]) -> RewardScores:
        """Every reward's values and their weighted sums.

        Raises:
            EasyDistillError: a reward returned something other than a finite number, None or `UNJUDGED` per rollout.
        """
        return self.combined(self.values(rollouts))

    def values(self, rollouts: Sequence[Rollout]) -> dict[str, list[float | None]]:
        """Each reward's own values.

        Raises:
            EasyDistillError: as `score`.
        """
        return {name: _checked(name, reward(rollouts), len(rollouts)) for name, reward in self._rewards.items()}

    def combined(self, given: Mapping[str, list[float | None]]) -> RewardScores:
        """The weighted sums of `values`; those of several calls may be joined first."""
        weighted = [
            (self._weights[name], _with_lowest_for_unjudged(values))
            for name, values in given.items()
            if self._weights[name]
        ]
        totals: list[float | None] = []
        for row in range(len(next(iter(given.values()), []))):
            parts = [weight * value for weight, values in weighted if (value := values[row]) is not None]
            totals.append(None if not parts or UNJUDGED in parts else math.fsum(parts))
        return RewardScores(totals, {name: list(map(_judged, values)) for name, values in given.items()})

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return self.score(rollouts).totals

    def close(self) -> None:
        """Close all rewards, even if closing one of them fails."""
        close_all(list(self._rewards.values()))

    def __enter__(self) -> WeightedRewards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def close_all(rewards: Sequence[Reward]) -> None:
    """Close all rewards, then raise the first failure if there was one."""
    if rewards:
        try:
            rewards[0].close()
        finally:
            close_all(rewards[1:])


def _checked(name: str, values: list[float | None], count: int) -> list[float | None]:
    if len(values) != count:
        raise EasyDistillError(f"the reward {name!r} returned {len(values)} values for {count} rollouts")
    for value in values:
        if value is not None and value != UNJUDGED and not math.isfinite(value):
            raise EasyDistillError(f"the reward {name!r} returned {value}, which is not a finite number")
    return values


def _with_lowest_for_unjudged(values: list[float | None]) -> list[float | None]:
    """The values to sum: `UNJUDGED` replaced by the lowest value, or kept if there is no other value."""
    lowest = min((value for value in map(_judged, values) if value is not None), default=UNJUDGED)
    return [lowest if value == UNJUDGED else value for value in values]


def _judged(value: float | None) -> float | None:
    return None if value == UNJUDGED else value
