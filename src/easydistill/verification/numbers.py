r"""Reads the number in an answer exactly, and removes the markup around it.

Numbers are `Fraction`s: 0.1 is one tenth, and no comparison involves a float. Scientific notation is a number, both
`1e-5` and `6.02 \times 10^{23}`, and so are mixed numbers, `3\frac{1}{2}` or `3½`, and repeating decimals,
`0.\overline{36}` or `0.(36)`. Everything here is pure and takes
time linear in the text's length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from easydistill.verification._notations import without_repeating

MAX_DIGITS = 1000
"""Longer numbers are not read as numbers: they are never a real answer, and arithmetic on them is an attack."""
VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
MAX_ANSWER = 4000
"""Characters. A longer answer is neither stripped of markup nor read as a number."""


@dataclass(frozen=True)
class Number:
    """An exact number. For 12.5 %, `value` is 1/8 and `numeral`, the number as written, is 25/2."""

    value: Fraction
    numeral: Fraction
    percent: bool = False
    unit: str = ""
    """The currency or unit next to it, words in the singular; empty if there is none."""


_D = "[0-9０-９]"
_INTEGER = rf"(?:{_D}{{1,3}}(?:(?:[,，]|\{{,\}}){_D}{{3}})+(?!{_D})|{_D}++)"
_DECIMAL = rf"(?:{_INTEGER}(?:[.．]{_D}++)?|[.．]{_D}++)"
_SIGN = r"(?:(?<![A-Za-z0-9０-９)\]}%])[-+−－–])?"
_CURRENCY = r"(?:(?:US|HK|CA|AU|RMB ?)?\\?[$＄€£¥￥₹₩₽])"
_SCALES = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "千": 10**3,
    "百万": 10**6,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
}
_TIMES = r"(?:\\times|\\cdot|[×·⋅*]|(?<=[ ])x(?=[ ]))"
_POWER = (
    # At most three digits: 10^{999999} is an attack, or algebra.
    r"(?:(?:\^|\*\*)(?:\{[ ]?[-+−]?[0-9]{1,3}[ ]?\}|\([-+−]?[0-9]{1,3}\)|[-+−]?[0-9]{1,3})|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3})"
    r"(?![0-9⁰¹²³⁴⁵⁶⁷⁸⁹^!]|[.][0-9])"
)
NUMBER = re.compile(
    rf"""
    (?<![A-Za-z0-9０-９_]) (?<![0-9][.]) (?<![ms]\^) (?<![ms]\^\{{)  # the 2 of m/s^2 is not a number
    (?P<sign>{_SIGN}) (?:(?P<currency>{_CURRENCY})[ ]?)? (?P<sign2>[-−－–]?)
    (?:
        (?: (?<!\^)(?P<whole>{_D}++)[ ]?+ )?+
        (?: \\[cdt]?frac(?P<top>\{{{_D}++\}}|{_D})(?P<bottom>\{{{_D}++\}}|{_D}(?!{_D}))
          | (?P<vulgar>[{VULGAR}])
          | (?<={_D}[ ])(?P<over>{_D}++)[/⁄](?P<under>{_D}++)(?!{_D}|[./]{_D}) )
      | 10(?P<power>{_POWER})
      | (?P<head>{_DECIMAL})
        (?: (?P<exponent>[eE][-+−]?[0-9]{{1,3}}(?![0-9A-Za-z]))
          | [ ]?{_TIMES}[ ]?10(?P<times>{_POWER})
          | [ ]?[/⁄][ ]?(?P<divisor>{_DECIMAL}) )?
    )
    (?![0-9]*(?:st|nd|rd|th)\b)
    (?: [ ]?(?P<percent>\\?[%％]|per[ ]?cent\b)
      | [ ]?(?P<scale>百万|[万萬亿億]|千(?![克米瓦卡帕伏赫字])|(?:thousand|million|billion|trillion)\b) )?
    """,
    re.VERBOSE,
)
_CURRENCY_NAMES = {
    "$": "dollar",
    "＄": "dollar",
    "€": "euro",
    "£": "pound",
    "¥": "yuan",
    "￥": "yuan",
    "元": "yuan",
    "美元": "dollar",
}
_NOT_UNITS = frozenset(
    # Words that change the value, so they must not be taken for units.
    re.findall(
        r"\w+",
        "and or to times plus minus over squared cubed hundred dozen percent mod sqrt root sin cos tan cot sec log exp "
        "choose factorial but not otherwise except divided through until",
    )
)
_LENGTH = r"(?:[kdcmnμµ]?m|ft|in|yd|mi)"
_SYMBOL = rf"(?:{_LENGTH}|[kmμµ]?g|m?s|h|hr|[mc]?[lL]|[kM]?J|[kMG]?W|k?N|k?Pa|lb|oz|[A-Za-z]{{3,20}})"
_UNIT_POWER = r"(?: ?\^(?:-?[1-4]|\{-?[1-4]\})|⁻?[¹²³⁴])"
_FACTOR = rf"{_SYMBOL}{_UNIT_POWER}?"
_UNIT = re.compile(
    # A letter directly after the number is a variable, except in speeds.
    rf" ?(?P<words>[A-Za-z]{{3,20}}(?: [A-Za-z]{{2,20}}){{0,3}}|[\u4e00-\u9fff]{{1,4}})"
    rf"| (?:{_LENGTH}{_UNIT_POWER}|{_FACTOR}(?: ?(?:/|[·⋅]|\\cdot) ?{_FACTOR}){{1,3}})"
    rf"| ?[kcm]?m/(?:s|h|hr|min){_UNIT_POWER}?"
)
_DEGREES = re.compile(r"\s*+(?:\^\s*+(?:\{\\circ\}|\\circ)|°)\s*+(?P<scale>[CFK](?![A-Za-z]))?")
_NOT_UNIT_CHARACTERS = frozenset("零一二三四五六七八九十百千万亿分之又和或至到点负")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`"), ("{", "}"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{((?:\^\{-?[0-9]\}|[^{}\\])*)\}")
_BOLD = re.compile(r"(?:(?<=\s)|^)(?:\*\*|__)(?=\S)|(?<=\S)(?:\*\*|__)(?=[\s.,;:。，；]|$)")
_SPACING = re.compile(r"\\[,!;: ]|~|[\u00a0\u2009\u202f]")


def _digits(text: str) -> Fraction | None:
    plain = re.sub(r"[,，{}]", "", unicodedata.normalize("NFKC", text))
    return Fraction(plain) if len(plain) <= MAX_DIGITS else None


def _value(match: re.Match[str]) -> Fraction | None:
    """The numeral of a match, without percent and scale; None if it is too long or divides by zero."""
    numbers: dict[str, Fraction] = {}
    for name in _DIGIT_GROUPS:
        if match[name]:
            number = _digits(match[name])
            if number is None:
                return None
            numbers[name] = number
    if match["vulgar"]:
        value, divisor = map(Fraction, unicodedata.normalize("NFKC", match["vulgar"]).split("⁄"))
    elif "top" in numbers:
        value, divisor = numbers["top"], numbers["bottom"]
    elif "over" in numbers:
        value, divisor = numbers["over"], numbers["under"]
    else:
        value, divisor = numbers.get("head", Fraction(1)), numbers.get("divisor", Fraction(1))
    if not divisor:
        return None
    value = (numbers.get("whole", Fraction(0)) + value / divisor) * _power_of_ten(match)
    negative = match["sign"] not in ("", "+") or match["sign2"] != ""
    return -value if negative else value


def _power_of_ten(match: re.Match[str]) -> Fraction:
    exponent = match["exponent"] or match["power"] or match["times"] or "0"
    plain = unicodedata.normalize("NFKC", exponent).replace("−", "-")
    return Fraction(10) ** int(plain.strip("eE^*{}() "))


_DIGIT_GROUPS = ("whole", "top", "bottom", "over", "under", "head", "divisor")


def bare(text: str) -> str:
    """An answer without markup: math delimiters, bold marks, `\\text{}`, LaTeX spaces, a final full stop."""
    if len(text) > MAX_ANSWER:
        return text.strip()
    text = _BOLD.sub("", _SPACING.sub(" ", _TEXT_COMMAND.sub(r" \1 ", text)))
    while True:
        before = text
        text = text.strip().removesuffix("。")
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        text = _unwrapped(text)
        if text == before:
            return re.sub(r"\s+", " ", text)


def _unwrapped(text: str) -> str:
    """A text without the delimiters around the whole of it."""
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : len(text) - len(closing)]
        wrapped = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if wrapped and opening not in inner and closing not in inner and not inner.endswith("\\"):
            return inner
    return text


def _unit(rest: str) -> str | None:
    """What follows a number as a unit in its canonical spelling, such as `m/s²` for `m/s^{2}`; None if it is no unit.

    Case matters in symbols (MW, mW) only.
    """
    if not rest:
        return ""
    found = _UNIT.fullmatch(rest)
    if found is None or not _NOT_UNITS.isdisjoint(re.findall(r"\w+", rest.casefold())):
        return None
    if not _NOT_UNIT_CHARACTERS.isdisjoint(rest):
        return None
    if words := found["words"]:
        return _CURRENCY_NAMES.get(words, words.casefold().removesuffix("s"))
    return re.sub(r"[ ^{}]", "", unicodedata.normalize("NFKC", found[0].replace(r"\cdot", "·")).replace("−", "-"))


def parse_number(text: str) -> Number | None:
    """Read an answer that is a single number, with sign, currency, thousands separators, decimals, fraction, power of
    ten, percent, scale and unit.

    Returns None if the text is anything else, such as an expression, a list, or a sentence.
    """
    if len(text) > MAX_ANSWER:
        return None
    text = without_repeating(bare(text))
    text = _DEGREES.sub(lambda sign: f" degrees{sign['scale'] or ''}", text.replace("℃", "°C")).strip()
    match = NUMBER.match(text)
    if match is None or (value := _value(match)) is None:
        return None
    unit = _unit(text[match.end() :])
    if unit is None:
        return None
    if match["currency"] and not unit:
        unit = _CURRENCY_NAMES.get(match["currency"][-1], match["currency"])
    scale = _SCALES.get(match["scale"], 1) if match["scale"] else 1
    if match["percent"]:
        return Number(value / 100, value, True, unit)
    return Number(value * scale, value * scale, False, unit)


def numbers(text: str) -> Iterator[tuple[Number, int, int]]:
    """All numbers of a text, including their currency, percent or scale, and where they start and end."""
    for match in NUMBER.finditer(text):
        number = parse_number(match[0])
        if number is not None:
            yield number, *match.span()


_NUMBER_WORD = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million"
    r"|billion|dozen|half|third|quarter)s?\b|[零〇一二两三四五六七八九十百千]",
    re.IGNORECASE,
)


def spelt_out(text: str) -> bool:
    """Whether a text contains a number in words, English or Chinese."""
    return _NUMBER_WORD.search(text) is not None
