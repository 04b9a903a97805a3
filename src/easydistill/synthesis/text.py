"""What two texts are compared by, in any language: tokens and a normalised spelling.

Case, width, white space and most punctuation do not count. Scripts that are written without spaces (Chinese, Japanese,
Thai …) are taken character by character, all others word by word. What changes the meaning of a short problem stays:
decimal points, mathematical signs, currency, emoji, and `- * / %` beside a digit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from easydistill.data.records import Sample
from easydistill.verification.fields import Language

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_KANA = "\u3040-\u30ff"
_UNSPACED = rf"{_HAN}{_KANA}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Marks that belong to the word they stand in: `\w` leaves them out and would cut Hindi or vocalised Arabic apart.
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
_UNSPACED_TOKEN = re.compile(rf"[{_UNSPACED}]")
_HAN_TOKEN = re.compile(rf"[{_HAN}]")
_KANA_TOKEN = re.compile(rf"[{_KANA}]")


def fold(text: str) -> str:
    """Unicode's compatibility form (NFKC) without case: full-width and half-width, `ẞ` and `ss` become the same."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.replace("\u2212", "-")


def tokens(text: str) -> list[str]:
    """Words, single characters of scripts without spaces, and signs, in their order."""
    return [match[match.lastindex or 0] for match in _TOKEN.finditer(fold(text))]


def normalise(text: str) -> str:
    """The spelling by which texts count as the same.

    A text with no tokens at all (`?!`) stands for itself, so that it equals only its like.
    """
    return " ".join(tokens(text)) or " ".join(fold(text).split())


def by_character(units: Sequence[str]) -> bool:
    """Whether tokens are mostly single characters of a script without spaces."""
    return 2 * sum(1 for unit in units if _UNSPACED_TOKEN.match(unit)) > len(units)


def language_of(text: str) -> Language:
    """`zh` where Chinese characters prevail, `en` for everything else.

    Two characters weigh as much as one word: an English request about a Chinese phrase is English. Japanese, told by
    its kana, is not Chinese.
    """
    units = tokens(text)
    han = sum(1 for unit in units if _HAN_TOKEN.match(unit))
    kana = sum(1 for unit in units if _KANA_TOKEN.match(unit))
    words = sum(1 for unit in units if not _UNSPACED_TOKEN.match(unit))
    return "zh" if han > 2 * words and han > kana else "en"


def ngrams(units: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """All runs of `size` tokens, in order; none where there are fewer tokens."""
    for start in range(len(units) - size + 1):
        yield tuple(units[start : start + size])


def prompt_text(sample: Sample) -> str:
    """What is asked, in one text: the prompt's messages but for the system's, which many rows share."""
    return "\n".join(message["content"] for message in sample.prompt if message["role"] != "system")
