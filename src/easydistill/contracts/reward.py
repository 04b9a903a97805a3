"""What a reward is given, and what it gives back.

Rewards are called from whichever thread trains, possibly from several at once, and so use no signals and keep no state
that two calls could mix up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import Field

from easydistill.config.base import NonNegativeFloat, Section
from easydistill.data.records import Message
from easydistill.errors import ConfigIssue
from easydistill.registry import Contract

if TYPE_CHECKING:
    from easydistill.contracts.teacher import Teacher

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


class RewardModule(Protocol):
    """A module registered as a reward. It loads neither torch nor another heavy library when it is imported."""

    Config: type[RewardConfig]
    """Its parameters."""

    def make(self, config: RewardConfig, context: RewardContext) -> Reward:
        """The reward, ready to judge."""


class RewardDefaults:
    """What a reward's module may declare beside that."""

    @staticmethod
    def files(config: RewardConfig) -> dict[str, str]:
        """Files that the config names, by key: they must be there before a run, and their contents shape it."""
        return {}

    @staticmethod
    def models(config: RewardConfig) -> dict[str, str]:
        """Models that the config names, by key, likewise."""
        return {}

    @staticmethod
    def issues(config: RewardConfig) -> list[ConfigIssue]:
        """What else is wrong with them that can be found without loading them."""
        return []

    @staticmethod
    def check(config: RewardConfig, meta: Mapping[str, Any]) -> str | None:
        """What is wrong with the fields of a row that the reward reads; None if it can read them."""
        return None

    @staticmethod
    def knows(config: RewardConfig, meta: Mapping[str, Any]) -> bool:
        """Whether a row holds what the reward judges by."""
        return True


REWARD = Contract(RewardModule, RewardDefaults)
