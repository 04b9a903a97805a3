"""Share of the student's own answers that are the teacher's, letter for letter: for short answers.

Case, white space around and between words, and what ends a sentence are not compared.
"""

from __future__ import annotations

from typing import ClassVar, Literal

MEASURED = "images"
_ENDS = ".!。！ \t\r\n"


def compared(text: str) -> str:
    """What is compared of an answer."""
    return " ".join(text.casefold().split()).strip(_ENDS)


class Metric:
    kind: ClassVar[Literal["answers"]] = "answers"
    needs_teacher: ClassVar[bool] = False

    def score(self, answer: str, reference: str) -> float:
        return float(compared(answer) == compared(reference))
