"""SentencePiece's byte-pair tokenizers (Llama 2, Mistral, Gemma) → GGUF metadata, and back.

llama.cpp keeps such a vocabulary with a score for each token: of all neighbours whose texts together are a token, those
with the highest score become one, the leftmost first. A tokenizer.json has merges instead, in their order. Both are
the same tokenizer if every pair of tokens that makes a token is a merge, and all pairs that make the same one stand
together: this is checked, and a tokenizer of which it is not true is refused.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.errors import ModelError

MODEL = "llama"
"""llama.cpp's name of this kind of tokenizer."""
_SPACE = "▁"
_UNKNOWN, _BYTE = 2, 6
"""Types of tokens."""
_NORMAL, _CONTROL, _USER = 1, 3, 4
_BYTES = [f"<0x{number:02X}>" for number in range(256)]
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Splits at spaces, of which none are left."""


@dataclass(frozen=True)
class Spaces:
    """Where a tokenizer puts a space that is not in the text."""

    prefix: bool
    """Before every text, also one that follows a special token."""
    first_only: bool = False
    """Only where a text begins: llama.cpp cannot do that, and puts none."""


def is_sentencepiece(described: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json describes one."""
    return described["model"].get("type") == "BPE" and bool(described["model"].get("byte_fallback"))


def spaces_of(described: Mapping[str, Any], reference: str) -> Spaces:
    """
    Raises:
        ModelError: the tokenizer does something to texts that llama.cpp does not.
    """
    normalizer, splitter = described.get("normalizer"), described.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prepended = {"type": "Prepend", "prepend": _SPACE}
    if splitter in (None, _NO_SPLIT) and steps == [prepended, _REPLACE]:
        return Spaces(True)
    if splitter in (None, _NO_SPLIT) and steps == [_REPLACE]:
        return Spaces(False)
    if not steps and splitter is not None and splitter["type"] == "Metaspace" and splitter.get("split") is False:
        scheme = splitter["prepend_scheme"]
        return Spaces(scheme == "always", first_only=scheme == "first")
    shown = json.dumps([normalizer, splitter], ensure_ascii=False)[:200]
    problem = f"{reference}: its tokenizer changes or splits texts in a way that llama.cpp does not know: {shown}"
    raise ModelError(f"{problem}\n    → export it as safetensors")


def scores_of(described: Mapping[str, Any], reference: str) -> dict[str, float]:
    """Scores of the tokens that merges make.

    Raises:
        ModelError: no scores say the same as the merges.
    """
    model = described["model"]
    vocabulary: Mapping[str, int] = model["vocab"]
    if lost := [token for token in _BYTES if token not in vocabulary]:
        raise _not_scores(reference, f"it has no token {lost[0]} for a byte")
    if model.get("ignore_merges"):
        raise _not_scores(reference, "it takes words that are tokens whole")
    apart = {token["content"] for token in described["added_tokens"] if _SPACE not in token["content"]}
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    scores: dict[str, float] = {}
    last = None
    for left, right in merges:
        made = left + right
        if made in apart:
            continue
        if made != last and made in scores:
            raise _not_scores(reference, f"its merges to {made!r} do not stand together")
        last = made
        scores.setdefault(made, -float(len(scores)))
    known = set(merges)
    bytes_ = set(_BYTES)
    for token in vocabulary:
        if token in apart or token in bytes_:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary and (left, right) not in known and not {left, right} & apart:
                raise _not_scores(reference, f"{left!r} and {right!r} make a token and are no merge of its")
    return scores


def _not_scores(reference: str, problem: str) -> ModelError:
    words = f"{reference}: its tokenizer is not one of SentencePiece's, as llama.cpp knows them: {problem}"
    return ModelError(f"{words}\n    → export it as safetensors")


def add_vocabulary(
    writer: Any, described: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], reference: str
) -> Spaces:
    """Write tokens, their types and scores, and where a space is put.

    Raises:
        ModelError: llama.cpp knows no such tokenizer.
    """
    spaces, scores = spaces_of(described, reference), scores_of(described, reference)
    bytes_, unknown = set(_BYTES), described["model"].get("unk_token")
    texts, kinds = [], []
    for token, kind in zip(tokens, types, strict=True):
        if token == unknown:
            kind = _UNKNOWN
        elif kind == _NORMAL and token in bytes_:
            kind = _BYTE
        elif kind == _USER and token in scores:
            # Runs of spaces are found by merges too.
            kind = _NORMAL
        texts.append(token.replace(_SPACE, " ") if kind == _USER else token)
        kinds.append(kind)
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores([scores.get(token, -float(len(scores))) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(spaces.prefix)
    return spaces


def encoder_of(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], prefix: bool
) -> Callable[[str], list[int]]:
    """Text → ids by what a file says, as llama.cpp reads it: first special tokens, the longest first, then merges."""
    numbers = {token: number for number, token in enumerate(tokens)}
    apart = {token for token, kind in zip(tokens, types, strict=True) if kind in {_CONTROL, _USER, _UNKNOWN}}
    longest_first = sorted(apart, key=lambda token: len(token.encode()), reverse=True)

    def encode(text: str) -> list[int]:
        parts: list[int | str] = [text] if text else []
        for token in longest_first:
            if token in text:
                parts = [piece for part in parts for piece in _parted(part, token, numbers[token])]
        ids: list[int] = []
        after_special = True
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += merged((" " if prefix and after_special else "") + part)
            after_special = isinstance(part, int)
        return ids

    def merged(text: str) -> list[int]:
        symbols: list[str] = list(text.replace(" ", _SPACE))
        following, before = list(range(1, len(symbols) + 1)), list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if (
                left >= 0
                and right < len(symbols)
                and (number := numbers.get(symbols[left] + symbols[right])) is not None
            ):
                heapq.heappush(queue, (-scores[number], left, right, symbols[left] + symbols[right]))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, made = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != made:
                continue
            symbols[left], symbols[right] = made, ""
            following[left] = following[right]
            if following[left] < len(symbols):
                before[following[left]] = left
            offer(before[left], left)
            offer(left, following[left])
        ids: list[int] = []
        for symbol in filter(None, symbols):
            known = numbers.get(symbol)
            ids += [known] if known is not None else [numbers[_BYTES[byte]] for byte in symbol.encode()]
        return ids

    return encode


def _parted(part: int | str, token: str, number: int) -> list[int | str]:
    """A text, cut at a token."""
    if isinstance(part, int):
        return [part]
    found: list[int | str] = []
    for place, piece in enumerate(part.split(token)):
        found += [number] if place else []
        found += [piece] if piece else []
    return found
