"""Texts and the spans that are learned → token ids and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from easydistill.data.chat.templates import Span

Masked = tuple[list[int], list[bool]]
"""Token ids, and whether each is learned."""


class Pieces:
    """Tokenises texts so that no token lies partly inside of a span."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer, self._eos_ids = tokenizer, eos_ids
        # One integer object for each token of the vocabulary: a token of a row then takes 8 bytes instead of 36.
        self._shared: dict[int, int] = {}

    def tokens(self, text: str) -> list[int]:
        """The tokens of one text."""
        # The template itself writes BOS if the model expects one; adding special tokens would double it.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

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
        tokenised = iter(self._batch(pieces))
        for own in kinds:
            ids: list[int] = []
            mask: list[bool] = []
            for learned in own:
                tokens = next(tokenised)
                ids += tokens
                mask += self._until_end_of_turn(tokens) if learned else [False] * len(tokens)
            yield self._closed(ids, mask)

    def _batch(self, pieces: list[str]) -> list[list[int]]:
        shared = self._shared
        found: list[list[int]] = self._tokenizer(pieces, add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]
        return [[shared.setdefault(token, token) for token in tokens] for tokens in found]

    def _by_offsets(self, chats: Sequence[tuple[str, Sequence[Span]]]) -> Iterator[Masked]:
        texts = [text for text, _ in chats]
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        for (_, spans), ids, offsets in zip(chats, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            mask = [False] * len(ids)
            for start, end in spans:
                inside = [t for t, (_, stop) in enumerate(offsets) if start < stop <= end]
                kept = self._until_end_of_turn([ids[t] for t in inside])
                for t, keep in zip(inside, kept, strict=True):
                    mask[t] = keep
            yield self._closed(list(ids), mask)

    def _until_end_of_turn(self, tokens: list[int]) -> list[bool]:
        """True up to and including the first end token; nothing after it is ever generated."""
        last = next((t for t, token in enumerate(tokens) if token in self._eos_ids), len(tokens) - 1)
        return [t <= last for t in range(len(tokens))]

    def _closed(self, ids: list[int], mask: list[bool]) -> Masked:
        """Append the end token if the template writes none after the final answer: the model must learn to stop."""
        last = max((t for t, on in enumerate(mask) if on), default=None)
        if last is None or last + 1 < len(ids) or ids[last] in self._eos_ids or self._tokenizer.eos_token_id is None:
            return ids, mask
        return [*ids, self._tokenizer.eos_token_id], [*mask, True]
