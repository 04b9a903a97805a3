"""Texts cut into overlapping chunks along paragraphs and sentences, English and Chinese.

A chunk is exactly `text[start:end]`, and together the chunks are the whole text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_PARAGRAPH_END = re.compile(r"\n[ \t\f]*+\n\s*+")
_SENTENCE_END = re.compile(r"[.!?…]++[\"'”’)\]]*+\s++(?![a-z])|[。！？；]++[”’」』）]*+\s*+|\n\s*+")
_WORD_END = re.compile(r"\s++|[，、]\s*+")
_LETTER = re.compile(r"\S")
_ENDS = (_PARAGRAPH_END, _SENTENCE_END, _WORD_END)


@dataclass(frozen=True)
class Chunk:
    """A part of a text: `text` is `document[start:end]`, offsets are in characters."""

    text: str
    start: int
    end: int
    tokens: int
    source: str = ""


@dataclass(frozen=True)
class _Piece:
    start: int
    end: int
    tokens: int
    level: int
    """The border at its end: 0 of a paragraph, 1 of a sentence or line, 2 of a word, 3 of any character."""


def approximate_tokens(text: str) -> int:
    """Estimate of a text's tokens without a tokenizer: one per ideograph, else one per four characters."""
    wide = sum(1 for _ in _WIDE.finditer(text))
    return wide + math.ceil((len(text) - wide) / 4)


def chunks(
    text: str,
    tokens_min: int = 800,
    tokens_max: int = 1500,
    overlap: int = 100,
    count: Callable[[str], int] = approximate_tokens,
    source: str = "",
) -> list[Chunk]:
    """Cut a text into overlapping chunks that cover all of it.

    A chunk ends at the last end of a paragraph between `tokens_min` and `tokens_max`, else at the last end of a
    sentence. Sentences are cut between words, and words are cut, only if no chunk of that length is possible otherwise.
    The last chunk may be shorter, as may one before a piece that cannot be cut; none is longer, except for a single
    character.

    Args:
        text: any text; white space alone gives no chunks.
        tokens_min: tokens that a chunk should have at least.
        tokens_max: tokens that a chunk may have at most.
        overlap: most tokens that a chunk repeats from the end of the previous one, in whole pieces.
        count: tokens of a text, without special tokens. Lengths of pieces are summed, so it should be nearly additive;
            the upper limit holds even if it is not.
        source: stored in each chunk.

    Raises:
        ValueError: not 0 <= overlap < tokens_min <= tokens_max.
    """
    if not 0 <= overlap < tokens_min <= tokens_max:
        raise ValueError(
            f"chunks need 0 <= overlap < tokens_min <= tokens_max, not {overlap}, {tokens_min}, {tokens_max}"
        )
    if not text.strip():
        return []
    cutter = _Cutter(text, count)
    made: list[Chunk] = []
    # The next piece is the last of `waiting`.
    waiting = cutter.split(_Piece(0, len(text), count(text), -1))[::-1]
    current: list[_Piece] = []
    done = 0
    while waiting or (current and current[-1].end > done):
        cutter.fill(current, waiting, tokens_min, tokens_max)
        kept = cutter.fitting(current, _best(current, tokens_min) if waiting else len(current), tokens_max)
        if current[kept - 1].end <= done:
            # All of it is in the previous chunk: there is no room for the overlap.
            del current[0]
            continue
        start, done = current[0].start, current[kept - 1].end
        made.append(Chunk(text[start:done], start, done, count(text[start:done]), source))
        waiting += current[kept:][::-1]
        current = _tail(current[:kept], overlap)
    return made


def _best(pieces: list[_Piece], least: int) -> int:
    """How many pieces make the chunk: up to the strongest border past `least` tokens, the last one among equals."""
    best, total, level = len(pieces), 0, pieces[-1].level
    for number, piece in enumerate(pieces, start=1):
        total += piece.tokens
        if total >= least and piece.level <= level:
            best, level = number, piece.level
    return best


def _tail(pieces: list[_Piece], overlap: int) -> list[_Piece]:
    """The last pieces with at most `overlap` tokens together; never all of them."""
    total, kept = 0, len(pieces)
    while kept > 1 and total + pieces[kept - 1].tokens <= overlap:
        kept -= 1
        total += pieces[kept].tokens
    return pieces[kept:]


@dataclass(frozen=True)
class _Cutter:
    text: str
    count: Callable[[str], int]

    def split(self, piece: _Piece) -> list[_Piece]:
        """Cut a piece along the next finer kind of border that it contains; a word is halved."""
        start = next((match.start() for match in _LETTER.finditer(self.text, piece.start, piece.end)), piece.end)
        for level in range(max(piece.level + 1, 0), len(_ENDS)):
            # White space alone is not a piece; at the end it belongs to the border before it.
            borders = _ENDS[level].finditer(self.text, start, piece.end)
            ends = [end for match in borders if (end := match.end()) < piece.end]
            if ends:
                break
        else:
            if piece.end - piece.start == 1:
                return [piece]
            level, ends = len(_ENDS), [(piece.start + piece.end) // 2]
        return [
            _Piece(start, end, self.count(self.text[start:end]), level if end < piece.end else max(piece.level, 0))
            for start, end in pairwise([piece.start, *ends, piece.end])
        ]

    def fill(self, current: list[_Piece], waiting: list[_Piece], least: int, most: int) -> None:
        """Move the next pieces to `current`, at least one in all, and no more than fit into `most` tokens.

        A piece that does not fit is split while there are fewer than `least` tokens.
        """
        total = sum(piece.tokens for piece in current)
        while waiting:
            if total + waiting[-1].tokens <= most:
                total += waiting[-1].tokens
                current.append(waiting.pop())
            elif total < least and len(parts := self.split(waiting[-1])) > 1:
                waiting[-1:] = parts[::-1]
            else:
                break
        if not current:
            current.append(waiting.pop())

    def fitting(self, pieces: list[_Piece], number: int, most: int) -> int:
        """At most `number` pieces, together at most `most` tokens, which may differ from the sum over the pieces."""
        while number > 1 and self.count(self.text[pieces[0].start : pieces[number - 1].end]) > most:
            number -= 1
        return number
