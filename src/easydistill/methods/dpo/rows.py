"""Pairs of answers, tokenised for training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.messages import Message, is_learned
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import GAP, PLAIN
from easydistill.methods.shared.rows import UNLIMITED, length_words, unknown_token
from easydistill.models.limits import Limits

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer


@dataclass(frozen=True)
class PairRow:
    """A tokenised pair. Answers include their end token."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    beta: float | None = None
    gap: str = PLAIN
    """Kind of the pair; figures are grouped by it."""
    cut: bool = False
    """Whether one of its answers was truncated."""
    unlearned: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    """Positions in the chosen and in the rejected answer that the model does not write: the results of tools, and what
    the template puts around them."""

    @property
    def learned_tokens(self) -> tuple[int, int]:
        """Lengths of both answers, in tokens that the model writes."""
        return len(self.chosen) - len(self.unlearned[0]), len(self.rejected) - len(self.unlearned[1])

    @property
    def longest(self) -> int:
        """Length of the longer sequence, in tokens."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def sides(self) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
        """(token ids, start of the answer) of both sequences, the chosen one first."""
        start = len(self.prompt)
        return (self.prompt + self.chosen, start), (self.prompt + self.rejected, start)


def render_pairs(
    renderer: ChatRenderer, pairs: Sequence[Preference], max_length: int, stage: str, limits: Limits = UNLIMITED
) -> tuple[list[PairRow], list[Rejection]]:
    """Tokenise pairs, cut after `max_length` tokens or at the model's end, whichever comes first.

    Rejected are pairs that the template refuses, those with a token that the model does not know, and those whose
    answers are empty or equal within that length.
    """
    words, max_length = length_words(max_length, limits), limits.within(max_length)
    rows: list[PairRow] = []
    rejected: list[Rejection] = []
    written = renderer.render_many(chat for pair in pairs for chat in pair.chats)
    for pair, *both in zip(pairs, written, written, strict=True):
        sides = [side for side in both if not isinstance(side, DataError)]
        try:
            if len(sides) < len(both):
                raise next(side for side in both if isinstance(side, DataError))
            (start, chosen_end), (other_start, rejected_end) = (
                _span(rendered.mask, pair.prompt, answer)
                for rendered, answer in zip(sides, (pair.chosen, pair.rejected), strict=True)
            )
        except DataError as error:
            rejected.append(Rejection(pair.id, stage, TEMPLATE_REFUSED, str(error)))
            continue
        if (token := limits.stranger([*sides[0].ids, *sides[1].ids])) is not None:
            rejected.append(unknown_token(pair.id, stage, token, limits))
            continue
        if start != other_start or sides[0].ids[:start] != sides[1].ids[:start]:
            rejected.append(
                Rejection(pair.id, stage, TEMPLATE_REFUSED, "the template shows the two prompts differently")
            )
        elif start >= max_length:
            detail = f"the prompt alone fills {words}"
            rejected.append(Rejection(pair.id, stage, "no_trainable_tokens", detail))
        else:
            chosen = sides[0].ids[start : min(chosen_end, max_length)]
            worse = sides[1].ids[start : min(rejected_end, max_length)]
            if chosen == worse:
                detail = f"the template shows both answers alike within {words}"
                rejected.append(Rejection(pair.id, stage, "same_tokens", detail))
                continue
            gap = pair.meta.get(GAP)
            kind = gap if isinstance(gap, str) else PLAIN
            cut = max(chosen_end, rejected_end) > max_length
            first, second = (
                _unlearned(side.mask, start, len(answer)) for side, answer in zip(sides, (chosen, worse), strict=True)
            )
            row = PairRow(pair.id, sides[0].ids[:start], chosen, worse, pair.beta, kind, cut, (first, second))
            rows.append(row)
    return rows, rejected


def check_thoughts(renderer: ChatRenderer, pairs: Iterable[Preference]) -> None:
    """Check that the template renders `reasoning_content` of chosen answers, if there is any.

    Raises:
        DataError: the template leaves it out.
    """
    from easydistill.data.chat.sentinels import THOUGHTS

    for pair in pairs:
        if not any(message.get("reasoning_content") for message in pair.chosen):
            continue
        try:
            missing = renderer.missing(pair.chats[0])
        except DataError:
            # `render_pairs` rejects such pairs.
            continue
        if any(part.kind == THOUGHTS and part.message >= len(pair.prompt) for part in missing):
            raise DataError(
                f"the chat template leaves out `reasoning_content` (pair {pair.id}), so no chain of thought would be "
                "learned\n    → set dataset.template to one that shows it, or dataset.thoughts to inline"
            )
        return


def _span(mask: Sequence[bool], prompt: Sequence[Message], answer: Sequence[Message]) -> tuple[int, int]:
    """Start and end of an answer of one or more messages; earlier turns of the assistant are context.

    Raises:
        DataError: the answer has several messages, and the template does not show each as one that the model writes.
    """
    spans = _spans(mask)
    turns = sum(map(is_learned, answer))
    if turns > 1 and len(spans) != turns + sum(map(is_learned, prompt)):
        raise DataError("the template does not show every message of an answer as one that the model writes")
    return spans[-turns][0], spans[-1][1]


def _spans(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Where the mask is on without a gap."""
    edges = [at for at in range(1, len(mask)) if mask[at] != mask[at - 1]]
    bounds = [0, *edges, len(mask)]
    return [(start, end) for start, end in pairwise(bounds) if mask[start]]


def _unlearned(mask: Sequence[bool], start: int, length: int) -> frozenset[int]:
    return frozenset(at for at in range(length) if not mask[start + at])
