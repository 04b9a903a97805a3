"""What a reward is given, and what it gives back.

Rewards are called from whichever thread trains, possibly from several at once, and so use no signals and keep no state
that two calls could mix up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.data.records import Message

if TYPE_CHECKING:
    from easydistill.contracts.teacher import Teacher
from typing import Annotated, ClassVar

from pydantic import Field

from easydistill.config.base import NonNegativeFloat, Section

LARGEST = 1e9
"""Rewards and weights beyond it would leave what sums and float32 can hold."""


AnyFloat = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
"""Any number that a sum of rewards can hold; true and false are none."""


class RewardConfig(Section):
    """What every reward has."""

    needs_judge: ClassVar[bool] = False
    """Whether a model that judges must be there."""

    weight: Annotated[NonNegativeFloat, Field(le=LARGEST)] = 1.0
    """Its factor in the sum. With 0 it is computed and logged, and counts for nothing."""


UNJUDGED = -math.inf
"""What an answer is worth that itself keeps a reward from judging it: one that is longer than a model reads, say."""


@dataclass(frozen=True)
class Rollout:
    """One answer that the policy gave."""

    prompt: tuple[Message, ...]
    """The chat as asked."""
    text: str
    """The answer without special tokens."""
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """Of the answer, with the end token if it ended."""
    ended: bool
    """False where the answer was cut off."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, such as `answer`."""


@dataclass(frozen=True)
class RewardContext:
    """What rewards may need beside their configs."""

    tokenizer: Any = None
    """The policy's."""
    eos_ids: frozenset[int] = frozenset()
    """Every token that ends the policy's turn; empty for the tokenizer's own."""
    device: str | None = None
    """Where rewards put their models, such as `cuda:1`; by default this machine's accelerator."""
    judge: Teacher | None = None
    """The model that judges. Whoever made it closes it."""
    judge_sampling: Mapping[str, Any] = field(default_factory=dict)
    """How the judge samples, for the keys of requests."""
    judge_system_prompt: str | None = None
    """What the judge is told before every question."""
    journal: Path | None = None
    """This process's own file for what was paid for and must outlast a kill: the judge's outcomes."""


class Reward(Protocol):
    """Judges rollouts."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """A finite number for each rollout, in their order.

        None where it abstains: it has nothing to say, whatever the answer. `UNJUDGED` where the answer is why.
        """

    def close(self) -> None:
        """Free models, processes and connections."""
