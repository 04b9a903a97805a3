"""Answers that are being written, a token at a time.

The engine's thread gives a row its tokens; the row tells a listener of each as far as its text is certain, and of the
end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from easydistill.models.structured import SchemaMasks

Decode = Callable[[Sequence[int]], str]
"""Token ids → text, special tokens included."""
_BROKEN = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a row are drawn."""

    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int
    """Of the row's own stream of random numbers."""
    alternatives: int | None = None
    """How many log-probabilities are told beside each token's own; None for none at all."""


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability, in nats, at temperature 1."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most probable tokens."""


@dataclass(frozen=True)
class Told:
    """A token was written."""

    text: str
    """Text that is certain now and was not told yet: never a part of a stop text."""
    scored: Scored | None = None


@dataclass(frozen=True)
class Ended:
    """An answer is complete."""

    reason: Literal["stop", "length"]
    text: str
    """All of it."""
    ids: tuple[int, ...]
    """Its tokens, without the end token; a stop text's included."""
    tokens: int
    """How many were written, the end token included."""
    cut: bool = False
    """Whether a stop text ended it, which `text` leaves out."""


@dataclass(frozen=True)
class Failed:
    """An answer will not come."""

    error: Exception


Event = Told | Ended | Failed
Listener = Callable[[Event], None]


class Row:
    """A prompt that is being answered.

    Args:
        most: most tokens of the answer.
        ends: tokens that end it.
        stops: texts that end it.
        images: digests, in order.
        masks: constrain it to a schema.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        most: int,
        ends: frozenset[int],
        decode: Decode,
        listener: Listener,
        *,
        stops: tuple[str, ...] = (),
        images: tuple[str, ...] = (),
        masks: SchemaMasks | None = None,
    ) -> None:
        self.prompt, self.sampling, self.images, self.masks = prompt, sampling, images, masks
        self.most = most
        self.stream = random.Random(sampling.seed)
        self.cancelled = False
        """Set by whoever does not want the answer any more."""
        self._ends, self._listener = ends, listener
        self._text = _Text(decode)
        self._stops = StopTexts(stops)
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether nothing more is to be written."""
        return self._ended or self.cancelled

    @property
    def last(self) -> int | None:
        """The last token written."""
        return self._text.ids[-1] if self._text.ids else None

    def take(self, token: int, scored: Scored | None) -> None:
        """Go on with a token."""
        if token in self._ends:
            self._end("stop", 1)
            return
        certain = self._stops.add(self._text.add(token))
        full = len(self._text.ids) == self.most
        if full and not self._stops.found:
            certain += self._stops.add(self._text.rest()) + ("" if self._stops.found else self._stops.rest())
        self._listener(Told(certain, scored))
        if self._stops.found:
            self._end("stop", 0)
        elif full:
            self._end("length", 0)

    def fail(self, error: Exception) -> None:
        """Give it up."""
        if not self._ended:
            self._ended = True
            self._listener(Failed(error))

    def _end(self, reason: Literal["stop", "length"], end_tokens: int) -> None:
        self._ended = True
        ids = tuple(self._text.ids)
        cut = self._stops.found
        text = self._stops.text if cut else self._text.whole()
        self._listener(Ended(reason, text, ids, len(ids) + end_tokens, cut))


@dataclass
class _Text:
    """The text of tokens that come one at a time: whole characters, as soon as they are there."""

    decode: Decode
    ids: list[int] = field(default_factory=list)
    _from: int = 0
    _told: int = 0

    def add(self, token: int) -> str:
        self.ids.append(token)
        # A few tokens before, since some tokenizers write a token otherwise at a beginning.
        before, text = self.decode(self.ids[self._from : self._told]), self.decode(self.ids[self._from :])
        if text.endswith(_BROKEN) or len(text) <= len(before):
            return ""
        self._from, self._told = self._told, len(self.ids)
        return text[len(before) :]

    def rest(self) -> str:
        """What was held back: characters that are not whole."""
        before, text = self.decode(self.ids[self._from : self._told]), self.decode(self.ids[self._from :])
        self._from, self._told = self._told, len(self.ids)
        return text[len(before) :]

    def whole(self) -> str:
        return self.decode(self.ids)


class StopTexts:
    """Finds the first of some texts in a text that comes in pieces."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self.text = ""
        """All text so far; up to the stop text, once there is one."""
        self._told = 0
        self.found = False

    def add(self, piece: str) -> str:
        """What is new and certainly not part of a stop text."""
        if not self._stops:
            return piece
        start = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        places = [at for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if places:
            self.found, self.text = True, self.text[: min(places)]
            return self.rest()
        held = next(
            (n for n in range(min(self._longest - 1, len(self.text)), 0, -1) if self._may_stop(self.text[-n:])), 0
        )
        return self._tell(len(self.text) - held)

    def rest(self) -> str:
        """What was held back."""
        return self._tell(len(self.text))

    def _may_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)

    def _tell(self, until: int) -> str:
        told, self._told = self._told, max(self._told, until)
        return self.text[told : self._told]
