"""Texts → token ids, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from easydistill.data.tokens import Ids

_TRIED = 16
"""Texts by which it is decided whether the tokenizer's code in Rust gives what the tokenizer gives."""


class Encoder:
    """Encodes texts without special tokens of its own: the template writes those that the model expects.

    Batches go to the tokenizer's code in Rust, which works on all processors, holds no lock of Python's meanwhile and,
    asked for ids alone, keeps no offsets. A tokenizer that has no such code, or that adds something in Python, is
    called itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rust: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._is_tried = False
        if not hasattr(self._rust, "encode_batch_fast"):
            self._rust = None

    def one(self, text: str) -> list[int]:
        """The ids of one text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def many(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if not self._is_tried:
            self._try(list(texts[:_TRIED]))
        if self._rust is None or self._is_changed():
            return [np.array(ids, np.int32) for ids in self._called(list(texts))]
        encoded = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def _called(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]
        return found

    def _try(self, texts: list[str]) -> None:
        if self._rust is None or not texts:
            return
        # The call also takes back whatever truncation or padding the tokenizer was saved with.
        wanted = self._called(texts)
        found = [one.ids for one in self._rust.encode_batch_fast(texts, add_special_tokens=False)]
        self._is_tried = True
        if found != wanted:
            self._rust = None

    def _is_changed(self) -> bool:
        """Whether someone set the tokenizer to cut or pad; its next call takes that back."""
        rust = self._rust
        return (
            rust.truncation is not None
            or rust.padding is not None
            or rust.encode_special_tokens != getattr(self._tokenizer, "split_special_tokens", False)
        )

    def with_ends(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """The ids of each text, and where in it each token ends, in characters."""
        found = self._tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        return [
            (np.array(ids, np.int32), np.fromiter((end for _, end in offsets), np.int32, len(ids)))
            for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]
