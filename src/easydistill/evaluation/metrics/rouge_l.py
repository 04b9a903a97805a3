"""ROUGE-L of the student's answer against the teacher's: the F1 of their longest common subsequence (Lin, 2004).

Words are compared case-insensitively; scripts written without spaces (Chinese, Japanese, Thai …) are compared character
by character.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from easydistill.data.rouge import rouge_l

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words and characters to compare."""
    return _TOKEN.findall(text.lower())


class Metric:
    kind: ClassVar[Literal["answers"]] = "answers"
    needs_teacher: ClassVar[bool] = False

    def score(self, answer: str, reference: str) -> float:
        return rouge_l(words(answer), words(reference))
