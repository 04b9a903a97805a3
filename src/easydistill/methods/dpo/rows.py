"""Pairs of answers, tokenised for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.messages import Message, is_learned
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import GAP, PLAIN
from easydistill.methods.shared.rows import UNLIMITED, endless, length_words, refusal_reason, unknown_token
from easydistill.models.limits import Limits

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Rendered


@dataclass(frozen=True)
class PairRow:
    """A tokenised pair. Answers include their end token, unless they were cut off."""

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
    images: tuple[str, ...] = ()
    """The digests of the prompt's images, in the order of their tokens."""

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
        chosen, rejected = self.sequences
        return (chosen, start), (rejected, start)

    @property
    def sequences(self) -> tuple[list[int], list[int]]:
        """Prompt and answer, the chosen one first."""
        return self.prompt + self.chosen, self.prompt + self.rejected


def render_pairs(
    renderer: ChatRenderer, pairs: Sequence[Preference], max_length: int, stage: str, limits: Limits = UNLIMITED
) -> tuple[list[PairRow], list[Rejection]]:
    """Tokenise pairs, cut after `max_length` tokens or at the model's end, whichever comes first.

    No end is learned behind an answer that was cut off, neither as a good one nor as a bad one. Rejected are pairs that
    the template refuses, those with a token that the model does not know, those with an image beyond that length, and
    those whose answers are empty or equal within it.
    """
    from easydistill.data.chat.images import refuse_cut

    words, max_length = length_words(max_length, limits), limits.within(max_length)
    rows: list[PairRow] = []
    rejected: list[Rejection] = []
    written = renderer.render_many(chat for pair in pairs for chat in pair.chats)
    for pair, *both in zip(pairs, written, written, strict=True):
        try:
            chosen, worse = (
                _side(rendered, pair.prompt, answer, renderer.eos_ids if cut else None)
                for rendered, answer, cut in zip(both, (pair.chosen, pair.rejected), pair.cut, strict=True)
            )
            if pair.images:
                refuse_cut(renderer.images, chosen.prompt, max_length)
        except DataError as error:
            rejected.append(Rejection(pair.id, stage, refusal_reason(error), str(error)))
            continue
        if (token := limits.stranger([*chosen.ids, *worse.ids])) is not None:
            rejected.append(unknown_token(pair.id, stage, token, limits))
        elif problem := _problem(chosen, worse, max_length, words):
            rejected.append(Rejection(pair.id, stage, *problem))
        else:
            rows.append(_row(pair, chosen, worse, max_length))
    return rows, rejected


@dataclass(frozen=True)
class _Side:
    """A rendered chat with the place of its answer."""

    ids: list[int]
    mask: list[bool]
    start: int
    end: int

    @property
    def prompt(self) -> list[int]:
        return self.ids[: self.start]

    def answer(self, max_length: int) -> list[int]:
        return self.ids[self.start : min(self.end, max_length)]

    def unlearned(self, max_length: int) -> frozenset[int]:
        """Positions in the answer that the model does not write."""
        return frozenset(at for at in range(len(self.answer(max_length))) if not self.mask[self.start + at])


def _side(
    rendered: Rendered | DataError,
    prompt: Sequence[Message],
    answer: Sequence[Message],
    ends: frozenset[int] | None,
) -> _Side:
    """An answer in its chat; `ends` are the end tokens if it is to have none."""
    if isinstance(rendered, DataError):
        raise rendered
    if ends is not None:
        rendered = endless(rendered, ends)
    return _Side(rendered.ids, rendered.mask, *_span(rendered.mask, prompt, answer))


def _problem(chosen: _Side, worse: _Side, max_length: int, words: str) -> tuple[str, str] | None:
    """Why nothing can be learned from a pair, as (reason, detail)."""
    if chosen.prompt != worse.prompt:
        return TEMPLATE_REFUSED, "the template shows the two prompts differently"
    if chosen.start >= max_length:
        return "no_trainable_tokens", f"the prompt alone fills {words}"
    if chosen.answer(max_length) == worse.answer(max_length):
        return "same_tokens", f"the template shows both answers alike within {words}"
    return None


def _row(pair: Preference, chosen: _Side, worse: _Side, max_length: int) -> PairRow:
    gap = pair.meta.get(GAP)
    return PairRow(
        pair.id,
        chosen.prompt,
        chosen.answer(max_length),
        worse.answer(max_length),
        pair.beta,
        gap if isinstance(gap, str) else PLAIN,
        max(chosen.end, worse.end) > max_length,
        (chosen.unlearned(max_length), worse.unlearned(max_length)),
        pair.images,
    )


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
