"""The prompts of training by rewards, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from easydistill.contracts.reward import Rollout
from easydistill.data.messages import Message, Tool, images_of
from easydistill.methods.shared.rollouts import PromptOrder


@dataclass(frozen=True)
class PolicyRow:
    """A prompt to explore."""

    id: str
    prompt: list[int]
    """Token ids, including the generation prompt; those of images are expanded."""
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, such as `answer`, for rewards."""
    tools: tuple[Tool, ...] = ()
    """The tools that the answer may call."""

    @property
    def images(self) -> tuple[str, ...]:
        """The digests of the prompt's images, in the order of their tokens."""
        return images_of(*self.messages)


class GroupOrder(PromptOrder):
    """Like `PromptOrder`, with each prompt `group` times in a row.

    Args:
        rows: number of prompts.
        prompts: prompts per round of generation.
        repeats: micro-batches per round; TRL reads the round again for each.
    """

    def __init__(self, rows: int, prompts: int, group: int, seed: int, repeats: int) -> None:
        super().__init__(rows, prompts, seed, repeats)
        self._group = group

    def __len__(self) -> int:
        return super().__len__() * self._group

    def __iter__(self) -> Iterator[int]:
        return iter([index for index in super().__iter__() for _ in range(self._group)])


def rollout_of(row: PolicyRow, completion: Sequence[int], text: str, ended: bool) -> Rollout:
    """An answer in the form that rewards take."""
    return Rollout(row.messages, text, tuple(row.prompt), tuple(completion), ended, row.meta, tools=row.tools)
