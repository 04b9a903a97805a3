"""Whether a quoted span occurs in a source text, and where.

Enters: a span that a model says it quotes, and the text it says it quotes from. Leaves: an `Evidence` with a score from
0 to 100 and the place, `source[start:end]`.

1. Both are normalised: NFKC, case folded, all white space one space, one kind of quotation mark and dash; the quotation
   marks and stops around the span go. What is then found letter for letter, at word borders, scores 100.
2. Otherwise the best window of the span's length scores `partial_ratio` (rapidfuzz: 100 · (1 − indel distance / sum of
   lengths)); 90 passes. A span longer than the text is compared with the whole of it. The numbers of the span must
   all stand in the place found: a year with one digit changed is 97 % the same and another fact.

A short span occurs in many texts by chance, so it proves nothing and does not pass. A span weighs one for each letter
or digit, two for each ideograph, kana or hangul; an exact one needs a weight of 12, a fuzzy one of 24 (where 90 is at
most about four letters off).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from easydistill.errors import MissingExtra

MIN_EXACT_WEIGHT = 12
MIN_FUZZY_WEIGHT = 24
MAX_FUZZY_CHARACTERS = 4000
"""Longer spans are only looked for exactly: the search costs the product of both lengths."""
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_QUOTES = "\"'“”‘’„‚«»「」『』`´"
_ALIKE = str.maketrans(
    {**dict.fromkeys("“”„«»「」『』", '"'), **dict.fromkeys("‘’‚`´", "'"), **dict.fromkeys("‐‑‒–—―−", "-"), "…": "..."}
)
_NUMBERS = re.compile(r"[0-9]+(?:[.,][0-9]+)*")


@dataclass(frozen=True)
class Evidence:
    """Whether the span is there. Where `found` is false, score and place are of the best that was seen, if anything."""

    found: bool
    how: Literal["exact", "fuzzy", "none"]
    score: float
    """0 to 100."""
    start: int = 0
    end: int = 0
    reason: str = ""
    """Why it is not evidence."""


def find_evidence(span: str, source: str, threshold: float = 90.0) -> Evidence:
    """Look for a span in its source.

    Args:
        span: the quotation.
        source: the whole text.
        threshold: the score, 0 to 100, from which a span that is not there letter for letter passes.

    Raises:
        MissingExtra: rapidfuzz is needed, because the span is not there letter for letter, and not installed.
    """
    text, starts, ends = _normalise(source)
    wanted = _normalise(span)[0].strip(_QUOTES + " .")
    weight = _weight(wanted)
    if weight < MIN_EXACT_WEIGHT:
        return Evidence(False, "none", 0.0, reason=f"too short: it weighs {weight}, {MIN_EXACT_WEIGHT} are needed")
    at = _exactly(wanted, text)
    if at is not None:
        return Evidence(True, "exact", 100.0, starts[at], ends[at + len(wanted) - 1])
    if weight < MIN_FUZZY_WEIGHT:
        reason = (
            f"not there letter for letter; it weighs {weight}, {MIN_FUZZY_WEIGHT} are needed to look for it otherwise"
        )
        return Evidence(False, "none", 0.0, reason=reason)
    if len(wanted) > MAX_FUZZY_CHARACTERS:
        reason = f"not there letter for letter; it is longer than {MAX_FUZZY_CHARACTERS} characters"
        return Evidence(False, "none", 0.0, reason=reason)
    if not text:
        return Evidence(False, "none", 0.0, reason="the source is empty")
    return _fuzzily(wanted, text, starts, ends, threshold)


def _fuzzily(wanted: str, text: str, starts: list[int], ends: list[int], threshold: float) -> Evidence:
    try:
        from rapidfuzz import fuzz
    except ImportError:
        raise MissingExtra("synth", "Looking for quotations that are not literal") from None
    if len(wanted) > len(text):
        # partial_ratio would look for the shorter in the longer: for the source in the span.
        score, start, end = fuzz.ratio(wanted, text), 0, len(text)
    else:
        best = fuzz.partial_ratio_alignment(wanted, text)
        assert best is not None, "no cut-off was given"
        score, start, end = best.score, best.dest_start, best.dest_end
    place = starts[start], ends[max(end - 1, start)]
    if score < threshold:
        return Evidence(False, "none", score, *place, reason=f"the best place scores {score:.1f}, below {threshold:g}")
    while start > 0 and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    there = _numbers(text[start:end])
    missing = [number for number in _numbers(wanted) if number not in there]
    if missing:
        return Evidence(False, "none", score, *place, reason=f"the source does not say {missing[0]} there")
    return Evidence(True, "fuzzy", score, *place)


def _exactly(wanted: str, text: str) -> int | None:
    """The first place where it stands as whole words."""
    at = text.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if not (_joined(text[at - 1 : at], wanted[0]) or _joined(wanted[-1], text[end : end + 1])):
            return at
        at = text.find(wanted, at + 1)
    return None


def _joined(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word. Scripts without spaces have no such words."""
    return left.isalnum() and right.isalnum() and not (_WIDE.match(left) or _WIDE.match(right))


def _weight(text: str) -> int:
    return sum(2 if _WIDE.match(char) else 1 for char in text if char.isalnum())


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in _NUMBERS.findall(text)]


def _normalise(text: str) -> tuple[str, list[int], list[int]]:
    """The text in one spelling, and where each of its characters starts and ends in the original."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    blank = True
    index = 0
    while index < len(text):
        end = index + 1
        # A letter and its combining marks are one.
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text[index:end]).casefold())
        piece = piece.translate(_ALIKE)
        if unicodedata.category(text[index]) == "Cf":
            # Soft hyphens, zero-width spaces: nobody sees or quotes them.
            piece = ""
        elif piece.isspace():
            piece, blank = ("" if blank else " "), True
        else:
            piece, blank = re.sub(r"\s", " ", piece), False
        pieces.append(piece)
        starts += [index] * len(piece)
        ends += [end] * len(piece)
        index = end
    return "".join(pieces), starts, ends
