"""The input of rewards and their protocol.

Rewards are called from the training thread, possibly from several threads at once, so they use no signals and keep no
state that two calls could mix up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import Field

from easydistill.config.base import NonNegativeFloat, Section
from easydistill.data.messages import Message, Tool
from easydistill.errors import ConfigIssue
from easydistill.registry import Contract

if TYPE_CHECKING:
    from easydistill.contracts.teacher import Teacher

LARGEST = 1e9
"""Rewards and weights beyond it would leave what sums and float32 can hold."""


AnyFloat = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
"""Any number that a sum of rewards can hold; booleans are refused."""


class RewardConfig(Section):
    """Settings of every reward."""

    needs_judge: ClassVar[bool] = False
    """Whether it needs a judge model."""

    weight: Annotated[NonNegativeFloat, Field(le=LARGEST)] = 1.0
    """Its weight in the sum. With 0 it is computed and logged, but does not count."""


UNJUDGED = -math.inf
"""The value of an answer that cannot be judged because of the answer itself, such as one too long for a model."""


@dataclass(frozen=True)
class Rollout:
    """One answer of the policy."""

    prompt: tuple[Message, ...]
    """The messages before the answer; images in them are digests, whose files `RewardContext.images` gives."""
    text: str
    """The answer without its end token; other special tokens are in it, as they may mark thoughts and calls."""
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """The answer's tokens, including the end token if it ended."""
    ended: bool
    """False if the answer was cut off."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, such as `answer`."""
    tools: tuple[Tool, ...] = field(default=(), kw_only=True)
    """The tools that the answer may call."""


@dataclass(frozen=True)
class RewardContext:
    """What rewards may need in addition to their configs."""

    tokenizer: Any = None
    """The policy's."""
    eos_ids: frozenset[int] = frozenset()
    """Every token that ends the policy's turn; empty for the tokenizer's own end token."""
    device: str | None = None
    """Where rewards put their models, such as `cuda:1`; by default this machine's accelerator."""
    judge: Teacher | None = None
    """The model that judges. Rewards do not close it."""
    judge_sampling: Mapping[str, Any] = field(default_factory=dict)
    """The judge's sampling parameters, which are part of the request keys."""
    judge_system_prompt: str | None = None
    """The judge's system prompt."""
    judge_image: Mapping[str, Any] = field(default_factory=dict)
    """How the judge is sent images, which is part of the request keys."""
    journal: Path | None = None
    """This process's own file for the judge's outcomes, which have been paid for and must survive a kill."""
    redact: Callable[[Any], Any] = lambda value: value
    """Masks secrets in what is written to the journal."""
    images: Callable[[str], Path] | None = None
    """Gives the file of an image of the run by its digest, for rewards that look at images; None if rows have none."""


class Reward(Protocol):
    """Assigns a value to each rollout."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """A finite number for each rollout, in the same order.

        None means that the reward abstains, whatever the answer is; `UNJUDGED`, that it cannot judge this answer.
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
    """What a reward's module may also declare."""

    @staticmethod
    def files(config: RewardConfig) -> dict[str, str]:
        """Files named in the config, by key: they must exist before a run, and their contents enter fingerprints."""
        return {}

    @staticmethod
    def models(config: RewardConfig) -> dict[str, str]:
        """Models named in the config, by key, likewise."""
        return {}

    @staticmethod
    def issues(config: RewardConfig) -> list[ConfigIssue]:
        """Other problems with them that can be found without loading them."""
        return []

    @staticmethod
    def check(config: RewardConfig, meta: Mapping[str, Any]) -> str | None:
        """What is wrong with the fields of a row that the reward reads; None if they are usable."""
        return None

    @staticmethod
    def blindness(config: RewardConfig) -> str | None:
        """Why answers to prompts with images cannot be judged: what is blind, such as `the reward model (name)`; None
        if they can. Rows with images are then refused."""
        return None

    @staticmethod
    def knows(config: RewardConfig, meta: Mapping[str, Any]) -> bool:
        """Whether a row has the fields that the reward needs."""
        return True


REWARD = Contract(RewardModule, RewardDefaults)
