"""The most probable tokens of a teacher, in the place of each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """Of some tokens in a row, in nats."""

    own: list[float]
    """Their log-probabilities; NaN where there is none."""
    ids: list[list[int]]
    """The most probable tokens in the place of each, but for the token itself."""
    logprobs: list[list[float]]

    @classmethod
    def of(cls, targets: Sequence[int], own: list[float], ids: list[list[int]], logprobs: list[list[float]]) -> Listed:
        """From lists that may hold the token of the text, `targets`, too."""
        kept = [
            [(other, logprob) for other, logprob in zip(*row, strict=True) if other != token]
            for token, row in zip(targets, zip(ids, logprobs, strict=True), strict=True)
        ]
        return cls(
            own, [[other for other, _ in row] for row in kept], [[logprob for _, logprob in row] for row in kept]
        )
