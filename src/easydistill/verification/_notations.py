r"""Notations of numbers and names that a general parser misreads: repeating decimals, numerals with a base, words.

math-verify reads `101_2` as 101, `0x1F` as a product with a factor of 0, and `no` as n·o, which is `on`. Everything
here is pure and takes time linear in the text's length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_MAX_DIGITS = 300
"""Longer numerals are not read."""
_DOTS = r"(?:\.{3}|…|\\[lc]?dots)"
_SAME = f"(?:{'|'.join(3 * str(digit) for digit in range(10))})"
_REPEATING = re.compile(
    rf"""
    (?<![0-9A-Za-z.,]) (?P<whole>[0-9]*) [.] (?P<fixed>[0-9]*)
    (?: \\(?:overline|bar|dot)[ ]?\{{(?P<over>[0-9]+)\}} (?P<more>[0-9]*\\dot[ ]?\{{[0-9]+\}})?
      | \((?P<round>[0-9]+)\)
      | (?P<marked>(?:[0-9][\u0304\u0305\u0307])+)
      | (?<={_SAME}) (?P<going_on>{_DOTS}) )
    (?![0-9A-Za-z.])
    """,
    re.VERBOSE,
)
_BASE_NAMES = re.findall(
    "[a-z]+",
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
)
_BASES = {name: base for base, name in enumerate(_BASE_NAMES, 2)}
_BASE = rf"(?P<base>[0-9]{{1,2}}|{'|'.join(_BASES)})"
_DIGITS = r"(?P<digits>[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)"
_BASED = re.compile(
    rf"(?P<sign>[-−]?)(?:\({_DIGITS}\)|{_DIGITS.replace('digits', 'bare')})"
    rf"(?:_(?:\{{ ?\(?(?:base )?{_BASE}\)? ?\}}|{_BASE.replace('base', 'short', 1)})"
    rf"|,? \(?(?:in )?base {_BASE.replace('base', 'said', 1)}\)?)"
)
_PREFIXED = re.compile(r"(?P<sign>[-−]?)0(?:[bB](?P<b>[01]+)|[oO](?P<o>[0-7]+)|[xX](?P<x>[0-9A-Fa-f]+))")
_INSIDE = re.compile(
    r"(?<![A-Za-z0-9_.}\\])(?P<digits>[0-9]+)_(?:\{ ?(?P<base>[0-9]{1,2}) ?\}|(?P<short>[0-9])(?![0-9]))"
)
_SHORT_WORDS = frozenset(
    re.findall("[a-z]+", "am an as at be by do go he hi if in is it me my no of oh ok on or so to up us we ja si da")
)
_ITEMS = re.compile(r"\s*(?:[,;、，；]|\band\b)\s*(?:\band\b\s*)?")
_NAME = re.compile(r"[^\W\d_]{2,}(?:[ '’-][^\W\d_]+)*|[A-Z]")
_FORMULA = re.compile(r"(?=.*[0-9])(?:\(?[A-Z][a-z]?[0-9]*+\)?[0-9]*+){2,}+[-+]?")


# --- repeating decimals -----------------------------------------------------------------------------------------


def without_repeating(text: str) -> str:
    r"""A text with each repeating decimal as a fraction: `0.\overline{36}`, `0.(36)`, `0.\dot{3}`, `0.333...`."""
    return _REPEATING.sub(_fraction, text) if len(text) <= _MAX_DIGITS * 10 else text


def _fraction(match: re.Match[str]) -> str:
    fixed = match["fixed"]
    if match["going_on"]:
        fixed, period = fixed[:-3], fixed[-1]
    else:
        period = re.sub(r"[^0-9]", "", f"{match['over'] or match['round'] or match['marked']}{match['more'] or ''}")
    if len(match[0]) > _MAX_DIGITS:
        return match[0]
    ones = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    value = Fraction(int(match["whole"] + fixed or "0"), 10 ** len(fixed)) + ones
    return f"{value.numerator}/{value.denominator}"


# --- numerals with a base ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Based:
    """A numeral that states its base."""

    value: Fraction
    digits: str
    """As written, without the base."""


def based(text: str) -> Based | None:
    """Read an answer that is a numeral with its base: `101_2`, `(1F)_{16}`, `101 in base 2`, `0b101`, `0x1F`."""
    found = (_prefixed(text) or _suffixed(text)) if len(text) <= _MAX_DIGITS else None
    if found is None:
        return None
    sign, digits, base = found
    value = _in_base(digits, base)
    return None if value is None else Based(-value if sign else value, digits)


def _prefixed(text: str) -> tuple[str, str, int] | None:
    """(sign, digits, base) of `0x1F`."""
    match = _PREFIXED.fullmatch(text)
    if match is None:
        return None
    return next((match["sign"], match[name], base) for name, base in (("b", 2), ("o", 8), ("x", 16)) if match[name])


def _suffixed(text: str) -> tuple[str, str, int] | None:
    """(sign, digits, base) of `101_2`."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    named, digits = match["base"] or match["short"] or match["said"], match["digits"] or match["bare"]
    # A single letter, or one that is no digit of the base, is a variable with an index.
    if len(digits) == 1 and not digits.isdecimal():
        return None
    return match["sign"], digits, _BASES.get(named) or int(named)


def _in_base(digits: str, base: int) -> Fraction | None:
    """The value of a numeral; None if a digit is none of that base, or the base is not from 2 to 36."""
    whole, _, rest = digits.partition(".")
    try:
        return Fraction(int(whole + rest, base), base ** len(rest)) if 2 <= base <= 36 else None
    except ValueError:
        return None


def without_bases(text: str) -> str:
    """A text with each numeral that states its base, such as the first of `101_2 + 1`, in decimal."""

    def decimal(match: re.Match[str]) -> str:
        value = _in_base(match["digits"], int(match["base"] or match["short"]))
        return match[0] if value is None else str(value)

    return _INSIDE.sub(decimal, text) if len(text) <= _MAX_DIGITS * 10 else text


# --- names ------------------------------------------------------------------------------------------------------


def is_word(text: str) -> bool:
    """Whether letters alone are a word and not a product of variables such as `ab`: `TF`, `No`, `on`."""
    return len(text) == 2 and text.isalpha() and (text != text.lower() or text in _SHORT_WORDS)


def compare_names(left: str, right: str) -> Literal["equal", "different", "undecided"] | None:
    """Compare two lists of words (`True, False`), or a chemical formula and anything like it; None for other texts."""
    if found := _compare_formulas(left, right):
        return found
    one, other = (_list(side) for side in (left, right))
    if one is None or other is None:
        return None
    if one == other or (_is_set(left) and _is_set(right) and sorted(one) == sorted(other)):
        return "equal"
    return "undecided" if sorted(one) == sorted(other) else "different"


def _list(text: str) -> list[str] | None:
    inner = re.sub(r"^(?:\(|\[|\\\{)\s*(.*?)\s*(?:\)|\]|\\\})$", r"\1", text)
    items = _ITEMS.split(inner)
    whole = len(items) > 1 and all(_NAME.fullmatch(item) for item in items)
    # Products of variables are algebra.
    names = whole and all(len(item) != 2 or is_word(item) for item in items)
    return [item.casefold() for item in items] if names else None


def _is_set(text: str) -> bool:
    return text.startswith(r"\{")


def _compare_formulas(left: str, right: str) -> Literal["equal", "different"] | None:
    one, other = (re.sub(r"_(?:\{([0-9]+)\}|([0-9]))", r"\1\2", side) for side in (left, right))
    if not (_FORMULA.fullmatch(one) or _FORMULA.fullmatch(other)):
        return None
    if not (re.fullmatch(r"[A-Za-z0-9()+-]+", one) and re.fullmatch(r"[A-Za-z0-9()+-]+", other)):
        return None
    return "equal" if one == other else "different"
