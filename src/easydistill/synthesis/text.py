"""Tokens and a normalised spelling by which texts in any language are compared.

Case, character width, white space and most punctuation are ignored. Scripts written without spaces (Chinese, Japanese,
Thai …) are split into characters, all others into words. Signs that change the meaning of a short problem are kept:
decimal points, mathematical signs, currency, emoji, and `- * / %` next to a digit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from easydistill.data.messages import said
from easydistill.data.records import Sample
from easydistill.verification.fields import Language

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_KANA = "\u3040-\u30ff"
_UNSPACED = rf"{_HAN}{_KANA}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Combining marks are part of a word, but not of `\w`, which would split Hindi or vocalised Arabic.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
_SIGNS = "+<>=^$\u00a2-\u00a5\u00b0\u00b1\u00d7\u00f7\u20a0-\u20cf\u2190-\u23ff\u2600-\u27bf\u2a00-\u2aff"
_EMOJI = "\U0001f300-\U0001faff"
_TOKEN = re.compile(
    rf"\d+(?:[.,]\d+)+"  # 3.5 is not 35
    rf"|[{_UNSPACED}]"
    rf"|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+(?:(?<=[^\W\d_])#)?"  # C# is not C
    rf"|(?<=\d)\s*([-*/%])|([-*/%])(?=\s*\d)"
    rf"|[{_SIGNS}{_EMOJI}]"
)
# The same for text in ASCII, which is most text: in half the time.
_ASCII_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[a-z\d]+(?:(?<=[a-z])#)?|(?<=\d)\s*[-*/%]|[-*/%](?=\s*\d)|[+<>=^$]")
_UNSPACED_TOKEN = re.compile(rf"[{_UNSPACED}]")
_HAN_TOKEN = re.compile(rf"[{_HAN}]")
_KANA_TOKEN = re.compile(rf"[{_KANA}]")


def fold(text: str) -> str:
    """Unicode's compatibility form (NFKC), case-folded: full-width equals half-width, `ẞ` equals `ss`."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.replace("\u2212", "-")


def tokens(text: str) -> list[str]:
    """Words, single characters of scripts without spaces, and signs, in order."""
    if text.isascii():
        return list(map(str.lstrip, _ASCII_TOKEN.findall(text.lower())))
    return [match[match.lastindex or 0] for match in _TOKEN.finditer(fold(text))]


def normalise(text: str) -> str:
    """The spelling by which texts are compared for equality.

    A text without tokens (`?!`) is kept, folded, so that it does not equal every other such text.
    """
    return " ".join(tokens(text)) or " ".join(fold(text).split())


def by_character(units: Sequence[str]) -> bool:
    """Whether more than half of the tokens are characters of a script without spaces."""
    return 2 * sum(1 for unit in units if _UNSPACED_TOKEN.match(unit)) > len(units)


def language_of(text: str) -> Language:
    """`zh` if Chinese characters prevail, otherwise `en`.

    Two characters weigh as much as one word: an English request about a Chinese phrase is English. Kana mark a text as
    Japanese, not Chinese.
    """
    units = tokens(text)
    han = sum(1 for unit in units if _HAN_TOKEN.match(unit))
    kana = sum(1 for unit in units if _KANA_TOKEN.match(unit))
    words = sum(1 for unit in units if not _UNSPACED_TOKEN.match(unit))
    return "zh" if han > 2 * words and han > kana else "en"


def ngrams(units: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """All n-grams of `size` tokens, in order."""
    for start in range(len(units) - size + 1):
        yield tuple(units[start : start + size])


def prompt_text(sample: Sample) -> str:
    """The prompt's messages as one text, without the system message, which many rows share."""
    return "\n".join(said(message) for message in sample.prompt if message["role"] != "system")
