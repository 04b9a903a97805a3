"""Pairs of answers, tokenised for training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from easydistill.contracts.teacher import TEMPLATE_REFUSED
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import GAP, PLAIN

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
    renderer: ChatRenderer, pairs: Sequence[Preference], max_length: int, stage: str
) -> tuple[list[PairRow], list[Rejection]]:
    """Tokenise pairs.

    Rejected are pairs that the template refuses, and those whose answers are empty or equal within `max_length`.
    """
    rows: list[PairRow] = []
    rejected: list[Rejection] = []
    written = renderer.render_many((*pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected))
    for pair, *both in zip(pairs, written, written, strict=True):
        sides = [side for side in both if not isinstance(side, DataError)]
        if len(sides) < len(both):
            refused = next(str(side) for side in both if isinstance(side, DataError))
            rejected.append(Rejection(pair.id, stage, TEMPLATE_REFUSED, refused))
            continue
        (start, chosen_end), (other_start, rejected_end) = (_final_span(side.mask) for side in sides)
        if start != other_start or sides[0].ids[:start] != sides[1].ids[:start]:
            rejected.append(
                Rejection(pair.id, stage, TEMPLATE_REFUSED, "the template shows the two prompts differently")
            )
        elif start >= max_length:
            detail = f"the prompt alone fills max_length ({max_length} tokens)"
            rejected.append(Rejection(pair.id, stage, "no_trainable_tokens", detail))
        else:
            chosen = sides[0].ids[start : min(chosen_end, max_length)]
            worse = sides[1].ids[start : min(rejected_end, max_length)]
            if chosen == worse:
                detail = f"the template shows both answers alike within max_length ({max_length} tokens)"
                rejected.append(Rejection(pair.id, stage, "same_tokens", detail))
                continue
            gap = pair.meta.get(GAP)
            kind = gap if isinstance(gap, str) else PLAIN
            cut = max(chosen_end, rejected_end) > max_length
            rows.append(PairRow(pair.id, sides[0].ids[:start], chosen, worse, pair.beta, kind, cut))
    return rows, rejected


def check_thoughts(renderer: ChatRenderer, pairs: Iterable[Preference]) -> None:
    """Check that the template renders `reasoning_content` of chosen answers, if there is any.

    Raises:
        DataError: the template leaves it out.
    """
    from easydistill.data.chat.sentinels import THOUGHTS

    for pair in pairs:
        if not pair.chosen.get("reasoning_content"):
            continue
        try:
            missing = renderer.missing((*pair.prompt, pair.chosen))
        except DataError:
            # `render_pairs` rejects such pairs.
            continue
        if any(part.kind == THOUGHTS and part.message == len(pair.prompt) for part in missing):
            raise DataError(
                f"the chat template leaves out `reasoning_content` (pair {pair.id}), so no chain of thought would be "
                "learned\n    → set dataset.template to one that shows it, or dataset.thoughts to inline"
            )
        return


def _final_span(mask: Sequence[bool]) -> tuple[int, int]:
    """Start and end of the last answer; earlier turns of the assistant are context."""
    end = len(mask)
    while not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return start, end
