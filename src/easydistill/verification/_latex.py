"""Rewrites a pair of answers into LaTeX that math-verify reads correctly."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from easydistill.verification._notations import without_bases, without_repeating
from easydistill.verification.numbers import VULGAR, bare, parse_number

_SIGNS = str.maketrans(
    {"π": r"\pi ", "×": r"\times ", "÷": "/", "⁄": "/", "·": r"\cdot ", "−": "-", "≤": r"\le ", "≥": r"\ge "}
    | {sign: re.sub("(.+)⁄(.+)", r"\\frac{\1}{\2}", unicodedata.normalize("NFKC", sign)) for sign in VULGAR}
)
_ROOT = re.compile(r"(?:(?<![\\A-Za-z])sqrt|√) ?(?:\(([^()]*)\)|([0-9]+|[a-z]\b))")
_NAMES = re.compile(r"(?<![\\A-Za-z])(pi|sin|cos|tan|ln|log|exp)(?![A-Za-z])")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9_.\\])([0-9]++(?:\.[0-9]++)?|\.[0-9]++)[eE]([-+]?[0-9]++)(?![A-Za-z])")
_SUM = re.compile(r"(?!1e)[0-9]+e[-+][1-9][0-9]*")
"""`3e+5`, which may mean three times Euler's number plus five; `1e+5` is always a power of ten."""
_EULER = re.compile(r"(?<![A-Za-z\\])e(?![A-Za-z])")
_DECIMAL = re.compile(r"[-+]?[0-9,]*\.[0-9]+")
_SMALL = Fraction(1, 1000)
"""Below this, six decimals are too few to distinguish numbers."""


def _as_latex(answer: str, other: str) -> str:
    """An answer in LaTeX that math-verify cannot misread, given the answer it is compared with.

    It may be plain text, such as `2*sqrt(3)` or `3π`, in which `pi` would be read as p times i.
    """
    text = without_repeating(without_bases(bare(answer))).translate(_SIGNS)
    has_euler = _EULER.search(_SCIENTIFIC.sub("", other)) is not None
    number = parse_number(answer)
    if number is not None and not number.percent and not number.unit and not (has_euler and _SUM.fullmatch(text)):
        value = number.value
        if not _DECIMAL.fullmatch(text) or abs(value) < _SMALL:
            numerator = f"{value.numerator}"
            return numerator if value.denominator == 1 else rf"\frac{{{numerator}}}{{{value.denominator}}}"

    def power(match: re.Match[str]) -> str:
        return match[0] if has_euler and _SUM.fullmatch(match[0]) else rf"{match[1]} \times 10^{{{match[2]}}}"

    latex = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", _SCIENTIFIC.sub(power, text))
    return _NAMES.sub(r"\\\1 ", latex)


def latex_pair(reference: str, candidate: str) -> tuple[str, str]:
    """Both answers in LaTeX."""
    return _as_latex(reference, candidate), _as_latex(candidate, reference)
