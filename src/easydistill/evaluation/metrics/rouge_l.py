"""ROUGE-L of the student's answer against the teacher's: the F1 of their longest common subsequence (Lin, 2004).

Words are compared case-insensitively; scripts that are written without spaces (Chinese, Japanese, Thai …) are
compared character by character.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The units that are compared."""
    return _TOKEN.findall(text.lower())


def common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö, 2004): one big-integer step a word."""
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | (1 << index)
    every = (1 << len(first)) - 1
    state = every
    for word in second:
        matched = state & positions.get(word, 0)
        state = ((state + matched) | (state - matched)) & every
    return len(first) - state.bit_count()


class Metric:
    kind: ClassVar[Literal["answers"]] = "answers"
    needs_teacher: ClassVar[bool] = False

    def score(self, answer: str, reference: str) -> float:
        ours, theirs = words(answer), words(reference)
        if not ours or not theirs:
            return 0.0
        common = common_subsequence(ours, theirs)
        return 2 * common / (len(ours) + len(theirs))
