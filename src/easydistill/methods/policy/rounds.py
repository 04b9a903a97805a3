"""Rounds whose answers are spread over the ranks: scored, and dealt out to steps, as one process does with all of them.

Shapes: B answers of a rank, P prompt tokens (padded on the left), T answer tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from easydistill.contracts.reward import Rollout
from easydistill.methods.shared.ranks import from_all, from_first, gather_rows, rank, together, world_size
from easydistill.rewards import RewardScores, WeightedRewards

_PADDED_LEFT = ("prompt_ids", "prompt_mask")


def score_round(rewards: WeightedRewards, mine: Sequence[Rollout], *, by_first: bool) -> RewardScores:
    """The rewards of all ranks' answers, one rank's after another's, on all ranks.

    Args:
        mine: this rank's answers.
        by_first: whether the first rank scores them all; the others then need no rewards of their own.

    Raises:
        Interrupted, TeacherError: a rank's judge was interrupted, or failed for good.
    """
    if world_size() == 1:
        return rewards.score(mine)
    if by_first:
        everything = [rollout for part in from_all(list(mine)) for rollout in part]
        scored = together(lambda: rewards.score(everything) if rank() == 0 else None)[0]
        assert scored is not None, "the first rank's is not None"
        return scored
    parts = together(lambda: rewards.values(mine))
    return rewards.combined({name: [value for part in parts for value in part[name]] for name in parts[0]})


def dealt(found: Mapping[str, Any], steps: int, padding: int) -> list[dict[str, Any]]:
    """This rank's micro-batches of a round: all ranks' answers shuffled together, and each micro-batch shared by all.

    Args:
        found: TRL's tensors of this rank's answers, each with one row for each answer, and numbers of the whole round.
        steps: micro-batches of the round.
        padding: the padding token.
    """
    rows = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.ndim}
    assert all(isinstance(value, Tensor) for value in found.values()), (
        "images are not among them, but the numbers of their rows"
    )
    whole = {name: gather_rows(_widened(name, value, padding)) for name, value in rows.items()}
    count = len(whole["completion_ids"])
    # Every rank draws, so that the state of its generator is that of one process.
    order = from_first(torch.randperm(count))
    size, ranks = count // steps, world_size()
    mine = [order[at : at + size].chunk(ranks)[rank()] for at in range(0, count, size)]
    return [{**found, **{name: value[part] for name, value in whole.items()}} for part in mine]


def _widened(name: str, value: Tensor, padding: int) -> Tensor:
    """A tensor of this rank's answers, padded to the width that the longest of all ranks needs."""
    if value.ndim < 2:
        return value
    more = max(from_all(value.shape[1])) - value.shape[1]
    filler = padding if name.endswith("_ids") else 0
    return pad(value, (more, 0) if name in _PADDED_LEFT else (0, more), value=filler)
