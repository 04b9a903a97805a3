"""Sequences of a step in groups by their teachers, where a training has several; each reads its own group alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from easydistill.methods.shared.rollouts import Written

T = TypeVar("T")


def by_name(given: T | Mapping[str, T]) -> Mapping[str, T]:
    """What belongs to each teacher, by its name; what belongs to the only one has an empty name."""
    return given if isinstance(given, Mapping) else {"": given}


def groups(items: Sequence[Written]) -> dict[str, list[int]]:
    """Name of a teacher → the numbers of its sequences, in their order."""
    found: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        found.setdefault(item.taught_by, []).append(number)
    return found


def each_by_its_own(items: Sequence[Written], ask: Callable[[str, list[Written]], list[T]]) -> list[T]:
    """What teachers say of sequences, in the order of these.

    Args:
        ask: (name of a teacher, some of its sequences) → what it says of each.
    """
    found: dict[int, T] = {}
    for name, numbers in groups(items).items():
        found |= dict(zip(numbers, ask(name, [items[number] for number in numbers]), strict=True))
    return [found[number] for number in range(len(items))]


def token_places(items: Sequence[Written], numbers: Sequence[int]) -> list[int]:
    """Where the learned tokens of some sequences are among those of all."""
    starts, at = [], 0
    for item in items:
        starts.append(at)
        at += len(item.completion)
    return [starts[number] + token for number in numbers for token in range(len(items[number].completion))]
