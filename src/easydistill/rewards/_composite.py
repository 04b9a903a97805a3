"""Several rewards as one: R(y) = Σᵢ wᵢ · rᵢ(y), and each rᵢ by name, for the log.

A reward that abstains counts 0 in the sum and is counted as abstained. Where every reward with a weight abstains,
nothing is known of the rollout and its total is None: whoever trains leaves it out, rather than learn from a made-up 0.

An answer must not gain by keeping a reward from judging it: 0 would be the best value there is of a reward that is
negative throughout. Such an answer counts as the lowest that the reward gave to any answer scored with it, and where it
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
class Scored:
    """What rollouts are worth, in their order."""

    totals: list[float | None]
    """Weighted sums; None where every reward with a weight abstained, or one could not judge any answer."""
    by_reward: dict[str, list[float | None]]
    """Each reward's own values, before its weight; None where it abstained or could not judge."""

    def summary(self) -> dict[str, float]:
        """For the log: means over what did not abstain, `reward` and `reward/<name>`; shares that abstained,
        `reward/<name>/abstained` and `reward/abstained`. What nobody gave a value to has no mean."""
        found: dict[str, float] = {}
        for name, values in (("reward", self.totals), *((f"reward/{name}", v) for name, v in self.by_reward.items())):
            given = [value for value in values if value is not None]
            if given:
                found[name] = fmean(given)
            if values:
                found[f"{name}/abstained"] = 1 - len(given) / len(values)
        return found


class Composite:
    """The weighted sum of rewards; a `Reward` itself.

    Args:
        rewards: by name; they are called one after the other, in this order.
        weights: by the same names.
    """

    def __init__(self, rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> None:
        assert rewards.keys() == weights.keys(), "each reward has its weight"
        self._rewards, self._weights = dict(rewards), dict(weights)

    def score(self, rollouts: Sequence[Rollout]) -> Scored:
        """Every reward's values and their sums.

        Raises:
            EasyDistillError: a reward gave something else than a finite number, None or `UNJUDGED` for a rollout.
        """
        given = {name: _checked(name, reward(rollouts), len(rollouts)) for name, reward in self._rewards.items()}
        weighted = [(self._weights[name], _counted(values)) for name, values in given.items() if self._weights[name]]
        totals: list[float | None] = []
        for row in range(len(rollouts)):
            parts = [weight * value for weight, values in weighted if (value := values[row]) is not None]
            totals.append(None if not parts or UNJUDGED in parts else math.fsum(parts))
        return Scored(totals, {name: list(map(_judged, values)) for name, values in given.items()})

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return self.score(rollouts).totals

    def close(self) -> None:
        """Close all of them, also where one of them fails to."""
        close_all(list(self._rewards.values()))

    def __enter__(self) -> Composite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def close_all(rewards: Sequence[Reward]) -> None:
    """Close rewards; the first failure is raised once all have been tried."""
    if rewards:
        try:
            rewards[0].close()
        finally:
            close_all(rewards[1:])


def _checked(name: str, values: list[float | None], count: int) -> list[float | None]:
    if len(values) != count:
        raise EasyDistillError(f"the reward {name!r} gave {len(values)} values for {count} rollouts")
    for value in values:
        if value is not None and value != UNJUDGED and not math.isfinite(value):
            raise EasyDistillError(f"the reward {name!r} gave {value}, which is not a finite number")
    return values


def _counted(values: list[float | None]) -> list[float | None]:
    """What goes into the sum: the lowest value in place of `UNJUDGED`, which stays where there is no value at all."""
    lowest = min((value for value in map(_judged, values) if value is not None), default=UNJUDGED)
    return [lowest if value == UNJUDGED else value for value in values]


def _judged(value: float | None) -> float | None:
    return None if value == UNJUDGED else value
