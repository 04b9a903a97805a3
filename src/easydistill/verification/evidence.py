"""Whether a quotation occurs in a source text, and where.

Input: a span that a model claims to quote, and the text that it claims to quote from. Output: an `Evidence` with a
score from 0 to 100 and the place, `source[start:end]`.

1. Both texts are normalised: NFKC, case folding, single spaces, one kind of quotation mark and of dash; quotation marks
   and full stops around the span are removed. A literal match at word boundaries then scores 100.
2. Otherwise the best window of the span's length scores `partial_ratio` (rapidfuzz: 100 · (1 − indel distance / sum of
   lengths)); 90 passes. A span longer than the text is compared with the whole text. The numbers of the span must all
   occur in the matching place, because a year with one digit changed is 97 % the same but a different fact.

A short span occurs in many texts by chance, so it is no evidence and does not pass. The weight of a span is one for
each letter or digit and two for each ideograph, kana or hangul. An exact match needs a weight of 12, a fuzzy one 24, at
which a score of 90 allows about four wrong letters.
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
"""Longer spans are only matched exactly, because a fuzzy search costs the product of both lengths."""
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_QUOTES = "\"'“”‘’„‚«»「」『』`´"
_ALIKE = str.maketrans(
    {**dict.fromkeys("“”„«»「」『』", '"'), **dict.fromkeys("‘’‚`´", "'"), **dict.fromkeys("‐‑‒–—―−", "-"), "…": "..."}
)
_NUMBERS = re.compile(r"[0-9]+(?:[.,][0-9]+)*")


@dataclass(frozen=True)
class Evidence:
    """Whether the span occurs. If `found` is false, score and place are those of the best candidate, if any."""

    found: bool
    how: Literal["exact", "fuzzy", "none"]
    score: float
    """0 to 100."""
    start: int = 0
    end: int = 0
    reason: str = ""
    """Why the span is not evidence; empty if it is."""


def find_evidence(span: str, source: str, threshold: float = 90.0) -> Evidence:
    """Search for a span in its source.

    Args:
        span: the quotation.
        source: the whole text.
        threshold: the minimum score, 0 to 100, of a span that does not occur literally.

    Raises:
        MissingExtra: the span does not occur literally, and rapidfuzz is not installed.
    """
    text, starts, ends = _normalise(source)
    wanted = _normalise(span)[0].strip(_QUOTES + " .")
    weight = _weight(wanted)
    if weight < MIN_EXACT_WEIGHT:
        return Evidence(False, "none", 0.0, reason=f"too short: its weight is {weight}, below {MIN_EXACT_WEIGHT}")
    at = _exactly(wanted, text)
    if at is not None:
        return Evidence(True, "exact", 100.0, starts[at], ends[at + len(wanted) - 1])
    if weight < MIN_FUZZY_WEIGHT:
        reason = f"no literal match; its weight is {weight}, below the {MIN_FUZZY_WEIGHT} that a fuzzy match needs"
        return Evidence(False, "none", 0.0, reason=reason)
    if len(wanted) > MAX_FUZZY_CHARACTERS:
        reason = f"no literal match; it is longer than the {MAX_FUZZY_CHARACTERS} characters of a fuzzy match"
        return Evidence(False, "none", 0.0, reason=reason)
    if not text:
        return Evidence(False, "none", 0.0, reason="the source is empty")
    return _fuzzily(wanted, text, starts, ends, threshold)


def _fuzzily(wanted: str, text: str, starts: list[int], ends: list[int], threshold: float) -> Evidence:
    try:
        from rapidfuzz import fuzz
    except ImportError:
        raise MissingExtra("synth", "Finding quotations that are not literal") from None
    if len(wanted) > len(text):
        # partial_ratio would search for the shorter text in the longer one, here the source in the span.
        score, start, end = fuzz.ratio(wanted, text), 0, len(text)
    else:
        best = fuzz.partial_ratio_alignment(wanted, text)
        assert best is not None, "there is no score cut-off"
        score, start, end = best.score, best.dest_start, best.dest_end
    place = starts[start], ends[max(end - 1, start)]
    if score < threshold:
        return Evidence(False, "none", score, *place, reason=f"the best match scores {score:.1f}, below {threshold:g}")
    while start > 0 and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    present = _numbers(text[start:end])
    missing = [number for number in _numbers(wanted) if number not in present]
    if missing:
        return Evidence(False, "none", score, *place, reason=f"the source has no {missing[0]} in that place")
    return Evidence(True, "fuzzy", score, *place)


def _exactly(wanted: str, text: str) -> int | None:
    """The first place where it occurs as whole words."""
    at = text.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if not (_joined(text[at - 1 : at], wanted[0]) or _joined(wanted[-1], text[end : end + 1])):
            return at
        at = text.find(wanted, at + 1)
    return None


def _joined(left: str, right: str) -> bool:
    """Whether two adjacent characters belong to one word. Scripts without spaces have no such words."""
    return left.isalnum() and right.isalnum() and not (_WIDE.match(left) or _WIDE.match(right))


def _weight(text: str) -> int:
    return sum(2 if _WIDE.match(char) else 1 for char in text if char.isalnum())


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in _NUMBERS.findall(text)]


def _normalise(text: str) -> tuple[str, list[int], list[int]]:
    """The normalised text, and where each of its characters starts and ends in the original."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    blank = True
    index = 0
    while index < len(text):
        end = index + 1
        # Keep a letter and its combining marks together.
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text[index:end]).casefold())
        piece = piece.translate(_ALIKE)
        if unicodedata.category(text[index]) == "Cf":
            # Soft hyphens and zero-width spaces are invisible and are not quoted.
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
