r"""Finds the final answer in a text.

Input: a reply and an ordered list of strategies. Output: what the first successful strategy found. A strategy always
takes the *last* place that matches, because replies reason first.

- `boxed`: `\boxed{…}` with balanced braces. If the last box is never closed, the reply was cut off, and there is no
  answer at all.
- `hashes`: GSM8K's `#### 18`, possibly with a currency, a unit or bold marks; other `####` lines are headings.
- `phrase`: "the answer is …", "Answer: …", "答案是……", "the correct option is C", up to the end of the clause.
- `last_number`: the last number of the text.

`numbers.py` reads numbers. Everything here is pure and takes time linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from easydistill.verification.numbers import NUMBER, bare, parse_number

Strategy = Literal["boxed", "hashes", "phrase", "last_number"]
DEFAULT_STRATEGIES: tuple[Strategy, ...] = ("boxed", "hashes", "phrase", "last_number")
STATED: tuple[Strategy, ...] = ("boxed", "hashes", "phrase")
"""The strategies that find an answer which the text states to be its answer; `last_number` guesses."""


@dataclass(frozen=True)
class Found:
    """An answer: `text[start:end]` of the reply without the marks around it, and the strategy that found it."""

    text: str
    strategy: Strategy
    start: int
    end: int


# --- strategies -------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[^\s$\\{}]+")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(?P<rest>[^\n]{1,200})$", re.MULTILINE)
_PHRASE = re.compile(
    r"\banswers?\b(?:[^\n.:：=]{0,80}?\b(?:is|are|equals|would be)\b(?!\s+not\b)[ \t*_]*[:：]?|[ \t*_]*[:：=])"
    r"|答案(?:应该|应当|就)?(?:是|为|等于|[:：])[ \t]*[:：]?"
    # Only before a letter; otherwise the option is described, not named.
    r"|(?:\b(?:correct|right|best) (?:option|choice)(?: is\b[ \t]*[:：]?|[ \t*_]*[:：])"
    r"|正确的?选项(?:应该|应当|就)?(?:是|为|[:：]))(?=[ \t*_($]*(?-i:[A-Z](?![A-Za-z])(?! [a-z])))",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"[.!?;](?=\s|$)|[。！？；\n]|[,，]\s*(?=(?:because|since|so|which|as|where|i|we|it|that|this)\b)|，(?![0-9０-９])",
    re.IGNORECASE,
)


_MAX_ATTEMPTS = 100
"""Boxes, lines or phrases that are tried, so that a reply of a million headings does not cost a million attempts."""


class _CutOff(Exception):
    """The text ends inside its last box."""


def _boxed(text: str) -> tuple[int, int] | None:
    starts = [match.end() for match in _last(_BOX, text)]
    for last, start in enumerate(reversed(starts)):
        if text[start : start + 1] != "{":
            # TeX takes the next token: `\boxed 5`.
            token = _TOKEN.match(text, start)
            if token:
                return token.span()
            continue
        end = _closing_brace(text, start)
        if end is None:
            if last == 0:
                raise _CutOff
            continue
        if text[start + 1 : end].strip():
            return start + 1, end
    return None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _hashes(text: str) -> tuple[int, int] | None:
    spans = [match.span("rest") for match in _HASHES.finditer(text)]
    candidates = (span for span in reversed(spans[-_MAX_ATTEMPTS:]) if parse_number(text[slice(*span)]) is not None)
    return next(candidates, None)


def _phrase(text: str) -> tuple[int, int] | None:
    last = None
    for match in _PHRASE.finditer(text):
        last = match
    return _clause(text, last.end()) if last is not None else None


def _clause(text: str, start: int) -> tuple[int, int] | None:
    """The span from `start` to the end of the clause."""
    while start < len(text) and (text[start].isspace() or text[start] in "*_:："):
        start += 1
    ending = _CLAUSE_END.search(text, start)
    end = ending.start() if ending else len(text)
    return (start, end) if text[start:end].strip(" \t*_$") else None


def _last_number(text: str) -> tuple[int, int] | None:
    last = None
    for match in NUMBER.finditer(text):
        last = match
    return last.span() if last is not None else None


_FINDERS: dict[Strategy, Callable[[str], tuple[int, int] | None]] = {
    "boxed": _boxed,
    "hashes": _hashes,
    "phrase": _phrase,
    "last_number": _last_number,
}


def find_answer(text: str, strategies: Sequence[Strategy] = DEFAULT_STRATEGIES) -> Found | None:
    """Find the final answer of a text.

    Args:
        text: a reply, with or without its reasoning.
        strategies: tried in this order until one finds an answer.

    Returns:
        The answer, or None if no strategy finds one or the text is cut off inside its last box.

    Raises:
        ValueError: an unknown strategy.
    """
    for strategy in strategies:
        if strategy not in _FINDERS:
            raise ValueError(f"no such strategy: {strategy!r}; the strategies are {', '.join(_FINDERS)}")
    for strategy in strategies:
        try:
            span = _FINDERS[strategy](text)
        except _CutOff:
            return None
        if span is not None:
            start, end = span
            start += len(text[start:end]) - len(text[start:end].lstrip())
            end = start + len(text[start:end].rstrip())
            return Found(bare(text[start:end]) or text[start:end], strategy, start, end)
    return None


_LEAD = re.compile(r"[\s*_]*(?:the\s+)?(?:(?:final|correct|right)\s+|最终|正确)?", re.IGNORECASE)


def only_statement(text: str) -> str | None:
    """The answer in a text that is nothing but "Answer: 42" or "The answer is 42."; None for any other text."""
    phrases = list(_PHRASE.finditer(text))
    span = (
        _clause(text, phrases[0].end()) if len(phrases) == 1 and _LEAD.fullmatch(text, 0, phrases[0].start()) else None
    )
    if span is None or text[span[1] :].strip(" .。*_\n"):
        return None
    return bare(text[slice(*span)])


def statements(text: str) -> list[tuple[int, int]]:
    """Where a text states final answers, in order: contents of boxes, `####` lines, text after "the answer is".

    At most the last `_MAX_ATTEMPTS` of each kind. A box that is never closed extends to the end of the text. Spans that
    overlap are merged.
    """
    spans = [span for match in _last(_BOX, text) if (span := _box_contents(text, match.end())) is not None]
    lines = [match.span("rest") for match in _last(_HASHES, text)]
    spans += [(start, end) for start, end in lines if end == len(text) or parse_number(text[start:end]) is not None]
    spans += [span for match in _last(_PHRASE, text) if (span := _clause(text, match.end())) is not None]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _last(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return list(pattern.finditer(text))[-_MAX_ATTEMPTS:]


def _box_contents(text: str, start: int) -> tuple[int, int] | None:
    """The contents of a box whose brace, or only token, is at `start`."""
    if text[start : start + 1] == "{":
        end = _closing_brace(text, start)
        return start + 1, len(text) if end is None else end
    token = _TOKEN.match(text, start)
    return token.span() if token else None
