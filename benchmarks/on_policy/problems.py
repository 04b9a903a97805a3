"""The tasks of `tasks.py`: problems whose answer is one known number; some are trained on and some are not.

sums     those of `examples/reinforcement`, beyond one digit: two numbers of 0 to 14
largest  the largest of four numbers of two digits
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

Problem = dict[str, Any]
"""A row: `system`, `instruction`, and the known `answer`."""
SYSTEM = "Answer briefly."
"""In place of the longer one that the model's template would put there, which would be a third of all tokens."""


def _problem(asked: str, answer: int) -> Problem:
    return {"system": SYSTEM, "instruction": f"{asked} Reply with one number.", "answer": answer}


def _sums(draw: random.Random) -> list[Problem]:
    """Every pair once, so no held-out sum is trained on."""
    pairs = list(itertools.product(range(15), repeat=2))
    draw.shuffle(pairs)
    return [_problem(f"Add {a} and {b}.", a + b) for a, b in pairs]


def _largest(draw: random.Random) -> list[Problem]:
    sets = {frozenset(draw.sample(range(10, 100), 4)): None for _ in range(400)}
    found = []
    for numbers in sets:
        first, *middle, last = draw.sample(sorted(numbers), 4)
        asked = f"Which is the largest of {first}, {', '.join(map(str, middle))} and {last}?"
        found.append(_problem(asked, max(numbers)))
    return found


TASKS: dict[str, Callable[[random.Random], list[Problem]]] = {"sums": _sums, "largest": _largest}


def split(task: str, heldout: int, train: int) -> tuple[list[Problem], list[Problem]]:
    """(problems to train on, held-out problems), the same in every run."""
    found = TASKS[task](random.Random(f"{task} of the on-policy benchmark"))
    return found[heldout : heldout + train], found[:heldout]
