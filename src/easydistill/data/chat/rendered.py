"""A chat as text, and as the tokens that a student reads."""

from __future__ import annotations

from dataclasses import dataclass

from easydistill.data.chat.masks import Masked
from easydistill.data.chat.shown import Missing
from easydistill.data.chat.templates import Span


@dataclass(frozen=True)
class Rendered:
    """A tokenised chat.

    `mask[t]` says whether token t is learned; row t−1 of the model's output predicts it.
    """

    ids: list[int]
    mask: list[bool]
    truncated: bool = False
    lost_turns: int = 0
    """Turns that were to be learned and are only context: the template does not show them, or not to be found."""
    missing: tuple[Missing, ...] = ()
    """What the template does not show of the chat."""

    @property
    def trained_tokens(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class Shown:
    """A chat's text and what is learned of it."""

    text: str
    spans: list[Span]
    lost_turns: int = 0
    missing: tuple[Missing, ...] = ()

    def row(self, masked: Masked, max_length: int | None) -> Rendered:
        """The tokenised chat, cut off at `max_length`."""
        ids, mask = masked
        if max_length is not None and len(ids) > max_length:
            return Rendered(ids[:max_length], mask[:max_length], True, self.lost_turns, self.missing)
        return Rendered(ids, mask, False, self.lost_turns, self.missing)
