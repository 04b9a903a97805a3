"""The prompts of training by rewards, and the order in which they are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from easydistill.contracts.reward import Rollout
from easydistill.data.records import Message
from easydistill.methods.shared.rollouts import PromptOrder


@dataclass(frozen=True)
class PolicyRow:
    """A prompt to explore."""

    id: str
    prompt: list[int]
    """As token ids, the generation prompt included."""
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, such as `answer`, for rewards."""


class GroupOrder(PromptOrder):
    """As `PromptOrder`, each prompt `group` times in a row.

    Args:
        rows: prompts there are.
        prompts: prompts of a round of generation.
        repeats: micro-batches that a round serves, which TRL reads the round again for.
    """

    def __init__(self, rows: int, prompts: int, group: int, seed: int, repeats: int) -> None:
        super().__init__(rows, prompts, seed, repeats)
        self._group = group

    def __len__(self) -> int:
        return super().__len__() * self._group

    def __iter__(self) -> Iterator[int]:
        return iter([index for index in super().__iter__() for _ in range(self._group)])


def rollout_of(row: PolicyRow, completion: Sequence[int], text: str, ended: bool) -> Rollout:
    """An answer as rewards see it."""
    return Rollout(row.messages, text, tuple(row.prompt), tuple(completion), ended, row.meta)
