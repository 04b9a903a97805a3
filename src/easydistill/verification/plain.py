"""Compares answers that need no algebra: steps 1 to 3 of `equality.py`."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from easydistill.verification._notations import Based, based, compare_names, is_word
from easydistill.verification.numbers import Number, bare, parse_number

Outcome = Literal["equal", "different", "undecided"]
MAX_CHARACTERS = 2000
"""Longer answers are undecided. Two of this length fit into a pipe's buffer, so writing a request never blocks."""
_WORDS = re.compile(r"[A-Za-z]|[^\W\d_]{3,}(?:[ '’-][^\W\d_]+)*|[\u4e00-\u9fff]{1,20}")
"""The letter of a choice, or words; but neither `pi` nor a product such as `ab`. Shorter words: `is_word`."""
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,} [A-Za-z]{2,} |[\u4e00-\u9fff]{5,}")
_PAIR = re.compile(r"\([^()]+,[^()]+\)")
_CHOSEN = re.compile(r"\(?(?P<letter>[A-Z])(?:\)|[.:](?= )|：|、) ?(?P<said>\S.*)")
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z])([B-H](?![A-Za-z])|A(?![A-Za-z]| [a-z])|[a-h]\)|\([a-h](?=\)))")
_DATE = re.compile(
    r"[12][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|[12][0-9]{3}([/.])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([/.-])[0-9]{1,2}\2[12][0-9]{3}"
)


@dataclass(frozen=True)
class Verdict:
    """The result of one comparison."""

    outcome: Outcome
    by: Literal["text", "number", "math"]
    reason: str = ""
    """Why it is undecided; empty otherwise."""

    @property
    def equal(self) -> bool:
        return self.outcome == "equal"


def compare_plainly(reference: str, candidate: str) -> Verdict | None:
    """The verdict on two answers. None if algebra is needed. Pure."""
    if max(len(reference), len(candidate)) > MAX_CHARACTERS:
        return Verdict("undecided", "text", f"longer than {MAX_CHARACTERS} characters")
    # An umlaut may be one code point or two.
    left, right = (bare(unicodedata.normalize("NFC", side)) for side in (reference, candidate))
    if not left or not right:
        return Verdict("undecided", "text", f"the {'candidate' if left else 'reference'} is empty")
    left, right = _choice(left), _choice(right)
    if len(left) == 1 or len(right) == 1:
        left, right = _chosen(reference, left, right), _chosen(candidate, right, left)
    found = _compare_bases(left, right) or _compare_texts(left, right)
    return found or _compare_others(left, right, parse_number(reference), parse_number(candidate))


def _compare_texts(left: str, right: str) -> Verdict | None:
    """Equal texts, dates and words; None if the answers are anything else."""
    if left == right:
        return Verdict("equal", "text")
    if _DATE.fullmatch(left) or _DATE.fullmatch(right):
        return Verdict("different", "text")
    if _are_words(left, right):
        return Verdict("equal" if left.casefold() == right.casefold() else "different", "text")
    if (names := compare_names(left, right)) is not None:
        return Verdict(names, "text", "the same words in another order" if names == "undecided" else "")
    if {left[:2], right[:2]} >= {r"\{"} and any(_PAIR.fullmatch(side) for side in (left, right)):
        return Verdict("undecided", "text", "one is a set, the other a pair or an interval")
    return None


def _are_words(left: str, right: str) -> bool:
    if all(_WORDS.fullmatch(side) or is_word(side) for side in (left, right)):
        return True
    return (is_word(left) or is_word(right)) and left.isalpha() and right.isalpha()


def _compare_bases(left: str, right: str) -> Verdict | None:
    """Numerals that state their base, `101_2`; None if neither does, or the other is no number."""
    stated = [based(left), based(right)]
    one, other = (found or _in_decimal(text) for found, text in zip(stated, (left, right), strict=True))
    if stated == [None, None] or one is None or other is None:
        return None
    if one.value == other.value:
        return Verdict("equal", "number")
    if one.digits == other.digits and None in stated:
        return Verdict("undecided", "number", "the same digits, and only one of them states its base")
    return Verdict("different", "number")


def _in_decimal(text: str) -> Based | None:
    number = parse_number(text)
    return Based(number.value, text) if number else None


def _compare_others(left: str, right: str, one: Number | None, other: Number | None) -> Verdict | None:
    """Two numbers, a number and a word, and what algebra cannot read; None if algebra is needed."""
    known = [number for number in (one, other) if number is not None]
    if len(known) == 2:
        return _compare_numbers(*known)
    if known and any(len(side) > 1 and _WORDS.fullmatch(side) for side in (left, right)):
        return Verdict("different", "text")
    for name, side, number in (("reference", left, one), ("candidate", right, other)):
        if number is None and _PROSE.search(side):
            return Verdict("undecided", "text", f"the {name} is a sentence")
        if not _balanced(side):
            return Verdict("undecided", "text", f"the braces of the {name} are not balanced")
    return None


def _balanced(text: str) -> bool:
    depth = 0
    for mark in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            return False
    return depth == 0


def _choice(text: str) -> str:
    """`(B)`, `B)` and `option B` as `B`."""
    match = re.fullmatch(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-Z])\)?", text)
    return match[1] if match else text


def _chosen(answer: str, text: str, other: str) -> str:
    """`C) Paris` as `C` if the other side is a letter; but not if it has several lines or names a second choice."""
    match = _CHOSEN.fullmatch(text) if re.fullmatch("[A-Z]", other) and "\n" not in answer.strip() else None
    return match["letter"] if match and not _OTHER_CHOICE.search(match["said"]) else text


def _compare_numbers(one: Number, other: Number) -> Verdict:
    readings = {one.value, one.numeral} & {other.value, other.numeral} if one.percent != other.percent else set()
    if one.value != other.value and not readings:
        return Verdict("different", "number")
    if one.unit and other.unit and one.unit != other.unit:
        return Verdict("undecided", "number", f"the same number with different units: {one.unit!r} and {other.unit!r}")
    return Verdict("equal", "number")
