"""Pairs of whole chats, tokenised for a reward model.

A chat's tokens are what `apply_chat_template` gives for all of it, because that is what users of the model will pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.numbers import as_float
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection
from easydistill.data.row_files import MALFORMED
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import GAP, PLAIN
from easydistill.methods.shared.rows import UNLIMITED, refusal_reason, unknown_token
from easydistill.models.limits import Limits

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer

MARGIN = "margin"
"""Field of a pair: by how much its scores should differ."""
TRUTHS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
"""Fields of a pair with the known quality of its answers; the latter are UltraFeedback's."""
LARGEST_MARGIN = 1e6
"""Far beyond any difference of scores, but still safe in the loss."""
LARGEST_TRUTH = 1e30
"""Means of larger values could overflow."""
TOO_LONG = "too_long"


@dataclass(frozen=True)
class RewardRow:
    """Two tokenised chats that differ in their last message."""

    id: str
    prompt: str
    """Hash of the prompt: rows with the same prompt have comparable answers."""
    chosen: list[int]
    rejected: list[int]
    prompt_tokens: int
    """Length of the prompt that both chats begin with, in tokens."""
    margin: float = 0.0
    """By how much the scores should differ, in log-odds."""
    truth: tuple[float, float] | None = None
    """Known quality of the two answers, chosen first."""
    gap: str = PLAIN
    """Kind of the pair; figures are grouped by it."""
    images: tuple[str, ...] = ()
    """The digests of the prompt's images, in the order of their tokens."""

    @property
    def sequences(self) -> tuple[list[int], list[int]]:
        """The two chats, the chosen one first."""
        return self.chosen, self.rejected

    @property
    def longest(self) -> int:
        """Length of the longer chat, in tokens."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def answer_tokens(self) -> tuple[int, int]:
        """Lengths of the two answers in tokens, including what the template adds after them."""
        return len(self.chosen) - self.prompt_tokens, len(self.rejected) - self.prompt_tokens


def tokenise(
    renderer: ChatRenderer,
    pairs: Sequence[Preference],
    max_length: int,
    stage: str,
    *,
    use_margin: bool,
    limits: Limits = UNLIMITED,
) -> tuple[list[RewardRow], list[Rejection]]:
    """Tokenise pairs.

    Rejected are those that the template refuses, that are longer than `max_length` or than the model reads, with a
    token that the model does not know, and those whose margin is invalid.
    """
    rows: list[RewardRow] = []
    rejected: list[Rejection] = []
    for pair in pairs:
        try:
            row = _row(renderer, pair, use_margin)
        except _NoRow as problem:
            rejected.append(Rejection(pair.id, stage, problem.reason, str(problem)))
            continue
        if (token := limits.stranger([*row.chosen, *row.rejected])) is not None:
            rejected.append(unknown_token(pair.id, stage, token, limits))
        elif row.longest > limits.within(max_length):
            longest = limits.within(max_length)
            end = "training.max_length is" if longest == max_length else "the student's last position is"
            rejected.append(Rejection(pair.id, stage, TOO_LONG, f"{row.longest} tokens, and {end} {longest}"))
        else:
            rows.append(row)
    return rows, rejected


class _NoRow(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _row(renderer: ChatRenderer, pair: Preference, use_margin: bool) -> RewardRow:
    try:
        prompt = renderer.prompt_ids(pair.prompt_chat)
        chosen, rejected = map(renderer.chat_ids, pair.chats)
    except DataError as error:
        raise _NoRow(refusal_reason(error), str(error)) from None
    if chosen == rejected:
        raise _NoRow(TEMPLATE_REFUSED, "the template shows both answers alike")
    given = pair.meta.get(MARGIN, 0.0) if use_margin else 0.0
    margin = as_float(given)
    if margin is None or not 0 <= margin <= LARGEST_MARGIN:
        problem = f"`{MARGIN}` is {str(given)[:40]!r}, not a number from 0 to {LARGEST_MARGIN:g}"
        raise _NoRow(MALFORMED, problem)
    gap = pair.meta.get(GAP)
    return RewardRow(
        pair.id,
        pair.prompt_hash,
        chosen,
        rejected,
        len(prompt),
        margin,
        _truth(pair),
        gap if isinstance(gap, str) else PLAIN,
        pair.images,
    )


def _truth(pair: Preference) -> tuple[float, float] | None:
    for names in TRUTHS:
        # true and false count as 1 and 0.
        chosen, rejected = (
            float(value) if isinstance(value, bool) else as_float(value, LARGEST_TRUTH)
            for value in map(pair.meta.get, names)
        )
        if chosen is not None and rejected is not None:
            return chosen, rejected
    return None
