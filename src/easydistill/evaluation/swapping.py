"""Held-out rows with the images of other rows: what a student that looks would find harder to answer.

Each row gets the images of the next row in a random order that has as many, others than its own. The answer stays the
same; the prompt is rendered again, since another image may take another number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from easydistill.data.messages import Message
from easydistill.data.records import Sample, draw_key
from easydistill.errors import DataError

if TYPE_CHECKING:
    from easydistill.contracts.metric import TokenRows
    from easydistill.data.chat import ChatRenderer, Rendered

_SEED = 0
"""Of the order in which images are passed on: it is the same for all models that are compared."""


def swapped(samples: Sequence[Sample], rows: Sequence[Rendered], renderer: ChatRenderer) -> dict[int, Rendered]:
    """Rows with another row's images, by their number among `rows`; without those for which there are none.

    Args:
        rows: the samples as they are, tokenised.
    """
    order = sorted((at for at, row in enumerate(rows) if row.images), key=lambda at: draw_key(_SEED, samples[at].id))
    found: dict[int, Rendered] = {}
    for place, at in enumerate(order):
        own = rows[at].images
        others = (rows[other].images for other in (*order[place + 1 :], *order[:place]))
        images = next((shown for shown in others if len(shown) == len(own) and not set(shown) & set(own)), None)
        if images is None:
            continue
        try:
            row = renderer.render(replace(samples[at], messages=_with_images(samples[at].messages, images)))
        except DataError:
            continue
        # The same answer, however many tokens stand before it.
        answer = rows[at].ids_T[rows[at].mask_T]
        if len(row.ids_T[row.mask_T]) >= len(answer) and (row.ids_T[row.mask_T][: len(answer)] == answer).all():
            found[at] = _cut(row, len(answer))
    return found


def _cut(row: Rendered, learned: int) -> Rendered:
    """A row up to the given number of learned tokens."""
    places = row.mask_T.nonzero()[0]
    return row.first(int(places[learned - 1]) + 1, truncated=row.truncated)


def _with_images(messages: Sequence[Message], images: Sequence[str]) -> tuple[Message, ...]:
    """Messages with other images in the places of theirs."""
    left = iter(images)
    found: list[Message] = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            parts = [{**part, "image": next(left)} if part["type"] == "image" else part for part in content]
            message = {**message, "content": parts}  # type: ignore[typeddict-item]
        found.append(message)
    return tuple(found)


@dataclass
class CrossEntropies:
    """A `TokenObserver`: the student's cross-entropy of each row, and over how many tokens."""

    sums: dict[int, float] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def update(self, rows: TokenRows) -> None:
        losses_N = -rows.student_logprobs_NV.gather(1, rows.target_N[:, None]).squeeze(1).double()
        for row, loss in zip(rows.row_N.tolist(), losses_N.tolist(), strict=True):
            self.sums[row] = self.sums.get(row, 0.0) + loss
            self.counts[row] = self.counts.get(row, 0) + 1

    def mean(self, rows: Iterable[int]) -> float:
        """The mean over the tokens of some rows."""
        chosen = list(rows)
        return sum(self.sums[row] for row in chosen) / sum(self.counts[row] for row in chosen)
