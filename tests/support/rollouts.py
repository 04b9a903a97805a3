"""Rollouts for the tests of rewards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from easydistill.rewards import Reward, Rollout


def rollout(
    text: str, *, asked: str = "What is 6 times 7?", tokens: int = 3, ended: bool = True, **meta: Any
) -> Rollout:
    """A rollout of some text; its token ids mean nothing."""
    return Rollout(({"role": "user", "content": asked},), text, (1, 2), tuple(range(3, 3 + tokens)), ended, meta)


def after(tokenizer: Any, prompt: str, text: str, **meta: Any) -> Rollout:
    """An answer to a prompt of such tokens."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return Rollout(({"role": "user", "content": "?"},), text, tuple(ids), (5,), True, meta)


def in_threads(reward: Reward, batches: Sequence[Sequence[Rollout]]) -> list[list[float | None]]:
    """What each batch is worth, each asked in a thread of its own, all at once."""
    found: dict[int, list[float | None]] = {}
    errors: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            found[number] = reward(batches[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [found[number] for number in range(len(batches))]
