"""Texts and the spans that are learned → token ids and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from easydistill.data.chat.encoding import Encoder
from easydistill.data.chat.templates import Span
from easydistill.data.tokens import Bools, Ids

Masked = tuple[Ids, Bools]
"""Token ids, and whether each is learned."""


class Pieces:
    """Tokenises texts so that no token lies partly inside of a span."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer, self._eos_ids = tokenizer, eos_ids
        self._encoder = Encoder(tokenizer)

    def tokens(self, text: str) -> list[int]:
        """The tokens of one text."""
        return self._encoder.one(text)

    @cached_property
    def splits_cleanly(self) -> bool:
        """Whether tokenising pieces separately preserves their text (sentencepiece-style tokenizers add a space)."""
        pieces = ["a b:\n", "Hello, it is"]
        joined = [token for piece in pieces for token in self.tokens(piece)]
        return bool(self._tokenizer.decode(joined) == "".join(pieces))

    @property
    def end_texts(self) -> list[str]:
        """The texts of the tokens that end a turn."""
        return [str(self._tokenizer.decode([token])) for token in sorted(self._eos_ids)]

    @property
    def whole_texts(self) -> list[str]:
        """The texts that are always a token of their own."""
        added: dict[str, int] = getattr(self._tokenizer, "get_added_vocab", dict)()
        return list(added)

    def masked(self, chats: Sequence[tuple[str, Sequence[Span]]]) -> Iterator[Masked]:
        """The tokens of texts, masked outside of their spans and behind the first end token of each."""
        chats = [(text, self._merged(text, spans)) for text, spans in chats]
        yield from (self._by_pieces if self.splits_cleanly else self._by_offsets)(chats) if chats else ()

    def _merged(self, text: str, spans: Sequence[Span]) -> list[Span]:
        """The spans, one that only ends a turn joined to the one that it ends: nothing is learned behind an end."""
        merged: list[Span] = []
        for start, end in sorted(spans):
            if merged and start == merged[-1][1] and text[start:end].strip() in self._closings:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return merged

    @cached_property
    def _closings(self) -> frozenset[str]:
        return frozenset((*self.end_texts, ""))

    def _by_pieces(self, chats: Sequence[tuple[str, Sequence[Span]]]) -> Iterator[Masked]:
        pieces: list[str] = []
        kinds: list[list[bool]] = []
        for text, spans in chats:
            kinds.append([])
            at = 0
            for start, end in (*spans, (len(text), len(text))):
                for piece, learned in ((text[at:start], False), (text[start:end], True)):
                    if piece:
                        pieces.append(piece)
                        kinds[-1].append(learned)
                at = end
        tokenised = iter(self._encoder.many(pieces))
        for own in kinds:
            parts = [next(tokenised) for _ in own]
            ids_T = np.concatenate(parts) if parts else np.zeros(0, np.int32)
            mask_T = np.zeros(len(ids_T), np.bool_)
            at = 0
            for part, learned in zip(parts, own, strict=True):
                if learned:
                    mask_T[at : at + self._until_end_of_turn(part)] = True
                at += len(part)
            yield self._closed(ids_T, mask_T)

    def _by_offsets(self, chats: Sequence[tuple[str, Sequence[Span]]]) -> Iterator[Masked]:
        encoded = self._encoder.with_ends([text for text, _ in chats])
        for (_, spans), (ids_T, ends_T) in zip(chats, encoded, strict=True):
            mask_T = np.zeros(len(ids_T), np.bool_)
            for start, end in spans:
                inside = np.flatnonzero((start < ends_T) & (ends_T <= end))
                mask_T[inside[: self._until_end_of_turn(ids_T[inside])]] = True
            yield self._closed(ids_T, mask_T)

    def _until_end_of_turn(self, ids: Ids) -> int:
        """The number of tokens up to and including the first end token; nothing after it is ever generated."""
        # A few comparisons cost less than `np.isin`.
        firsts = [int(found[0]) for end in self._eos_ids if len(found := np.flatnonzero(ids == end))]
        return min(firsts) + 1 if firsts else len(ids)

    def _closed(self, ids_T: Ids, mask_T: Bools) -> Masked:
        """Append the end token if the template writes none after the final answer: the model must learn to stop."""
        if not len(mask_T) or not mask_T[-1] or int(ids_T[-1]) in self._eos_ids:
            return ids_T, mask_T
        end = self._tokenizer.eos_token_id
        return (ids_T, mask_T) if end is None else (np.append(ids_T, np.int32(end)), np.append(mask_T, True))
