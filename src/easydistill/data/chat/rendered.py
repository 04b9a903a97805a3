"""A chat as text, and as the tokens that a student reads."""

from __future__ import annotations

from dataclasses import dataclass

from easydistill.data.chat.masks import Masked
from easydistill.data.chat.shown import Missing
from easydistill.data.chat.templates import Span
from easydistill.data.tokens import Mask, TokenIds, Tokens


class Rendered(Tokens):
    """A tokenised chat; `mask` says of each token whether it is learned.

    Args:
        truncated: whether it was cut off at the longest length.
        lost_turns: turns that were to be learned and are only context: the template does not show them, or not to be
            found.
        missing: what the template does not show of the chat.
        images: the digests of its images, in the order of their tokens.
    """

    __slots__ = ("images", "lost_turns", "missing", "truncated")

    def __init__(
        self,
        ids: TokenIds,
        mask: Mask,
        truncated: bool = False,
        lost_turns: int = 0,
        missing: tuple[Missing, ...] = (),
        images: tuple[str, ...] = (),
    ) -> None:
        super().__init__(ids, mask)
        self.truncated = truncated
        self.lost_turns = lost_turns
        self.missing = missing
        self.images = images

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rendered) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())

    def _facts(self) -> tuple[object, ...]:
        return self.ids_T.tobytes(), self.mask_T.tobytes(), self.truncated, self.lost_turns, self.missing, self.images

    @property
    def trained_tokens(self) -> int:
        return int(self.mask_T.sum())

    def first(self, length: int, *, truncated: bool) -> Rendered:
        """The chat's first tokens, all of its images among them."""
        # Copies: a slice would keep the whole row in memory.
        ids_T, mask_T = self.ids_T[:length].copy(), self.mask_T[:length].copy()
        return Rendered(ids_T, mask_T, truncated, self.lost_turns, self.missing, self.images)


@dataclass(frozen=True)
class Shown:
    """A chat's text and what is learned of it."""

    text: str
    spans: list[Span]
    lost_turns: int = 0
    missing: tuple[Missing, ...] = ()
    images: tuple[str, ...] = ()

    def row(self, masked: Masked) -> Rendered:
        """The tokenised chat."""
        return Rendered(*masked, False, self.lost_turns, self.missing, self.images)
