"""Signals of a teacher with the student's vocabulary and a form of its own: its template, its tokens of images.

What enters: chats, and their rows as the student reads them. The teacher reads each chat in its own template, and each
image as its own number of tokens. What leaves: rows in which the n-th learned token is the same on both sides, so that
signal n, of whatever kind, is the teacher's distribution for the student's n-th learned token.

Only learned tokens are compared. If one is another token to the teacher, the row is refused: its signals would be of
another answer.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easydistill.data.chat import ChatRenderer, Expander, ImageRefused
from easydistill.data.messages import HasChat, Message
from easydistill.data.tokens import Ids
from easydistill.errors import DataError
from easydistill.models.compatibility import (
    PROBE,
    Difference,
    Side,
    answer_ids,
    begins_twice,
    fatal,
    output_rows,
)
from easydistill.signals.score import RowToScore
from easydistill.signals.store import ReadTokens

REFUSED, DIFFER, TOO_LONG = "teacher_refused", "answers_differ", "teacher_too_short"
"""Reasons for which rows are refused: the teacher's template does not take the chat; an answer token is another one to
the teacher; the teacher has fewer positions than the row needs."""
_HINT = (
    "\n    → give the teacher a template that shows answers as the student's does (inference.template), or set "
    'distillation.align to "bytes"'
)


@dataclass(frozen=True)
class UnlikeAnswer:
    """Why a row has no signals: it is not the same answer to the teacher.

    Attributes:
        reason: under which the row is rejected.
    """

    reason: str
    detail: str


class AnswersAligner:
    """Renders chats for a teacher, and checks that it reads the student's answers token by token.

    Args:
        student: its tokenizer names tokens in messages.
        teacher: its template is its own unless `Side.template` replaces it.
        context: the teacher's longest row.
        images: what it reads of images, if it sees any.

    Raises:
        DataError: the teacher has no template, or none that is valid.
    """

    def __init__(
        self,
        student: Side,
        teacher: Side,
        context: int | None = None,
        date: datetime.date | None = None,
        images: Expander | None = None,
    ) -> None:
        self.teacher: ChatRenderer = teacher.renderer(date, images)
        self._student = student
        self._context = context
        self.images = images

    def row(self, row: RowToScore, chat: HasChat | Sequence[Message], *, truncated: bool) -> RowToScore | UnlikeAnswer:
        """A row with what the teacher reads of its chat, or why it has no signals.

        Args:
            row: as the student reads it.
            truncated: whether that is only the beginning of the chat, or of an answer that was cut off.
        """
        try:
            theirs = self.teacher.render(chat)
        except DataError as error:
            reason = error.reason if isinstance(error, ImageRefused) else REFUSED
            return UnlikeAnswer(reason, f"the teacher's template refuses the chat: {error}")
        ids_T = theirs.ids_T
        places = np.flatnonzero(np.asarray(theirs.mask_T) & (np.arange(len(ids_T)) > 0))
        own_N = np.asarray(row.ids, np.int32)[np.flatnonzero(np.asarray(row.learned))]
        if problem := self._difference(own_N, ids_T[places], truncated):
            return UnlikeAnswer(DIFFER, problem + _HINT)
        places = places[: len(own_N)]
        end = self._end(ids_T, places)
        if self._context is not None and end > self._context:
            detail = f"the teacher reads the row as {end} tokens and has {self._context} positions"
            return UnlikeAnswer(TOO_LONG, f"{detail}\n    → shorten the row, or take another teacher")
        learned_T = np.zeros(end, bool)
        learned_T[places] = True
        return replace(row, read=ReadTokens(ids_T[:end], learned_T))

    def _end(self, ids_T: Ids, places: NDArray[np.int64]) -> int:
        """How much of its tokens the teacher has to read: all learned ones that the student has, and all images."""
        shown = self.images.processor.image_token_ids if self.images is not None else ()
        images = np.flatnonzero(np.isin(ids_T, list(shown)))
        return 1 + max(int(places[-1]) if len(places) else 0, int(images[-1]) if len(images) else 0)

    def _difference(self, ours_N: Ids, theirs_N: Ids, truncated: bool) -> str:
        """What is not alike in the learned tokens of both sides; nothing if the student's are the teacher's first."""
        size = min(len(ours_N), len(theirs_N))
        unlike = np.flatnonzero(ours_N[:size] != theirs_N[:size])
        if len(unlike):
            at = int(unlike[0])
            return (
                f"answer token {at + 1} of {len(ours_N)} is {self._named(ours_N[at])} for the student and "
                f"{self._named(theirs_N[at], teachers=True)} for the teacher"
            )
        if len(theirs_N) < len(ours_N) or (len(theirs_N) > len(ours_N) and not truncated):
            return (
                f"the student learns {len(ours_N)} answer tokens of the chat, of which the teacher's template shows "
                f"{len(theirs_N)}"
            )
        return ""

    def _named(self, token: Any, *, teachers: bool = False) -> str:
        tokenizer = self.teacher.tokenizer if teachers else self._student.tokenizer
        return f"{tokenizer.convert_ids_to_tokens(int(token))!r} (id {int(token)})"


def compare_answers(student: Side, teacher: Side) -> list[Difference]:
    """What prevents a teacher from scoring the student's answers in its own form, and what the user should know."""
    shared = answer_ids(student.tokenizer, teacher.tokenizer)
    if shared is None:
        problem = "teacher and student number their tokens of text differently"
        return [Difference(problem, 'set distillation.align to "bytes"', fatal=True)]
    try:
        ours = student.renderer()
        row = ours.render(PROBE)
        aligner = AnswersAligner(student, teacher)
        found = aligner.row(RowToScore("probe", row.ids_T, row.learned), PROBE, truncated=False)
    except DataError as error:
        problem, _, hint = str(error).partition("\n    → ")
        return [Difference(problem, hint or "take another teacher", fatal=True)]
    if isinstance(found, UnlikeAnswer):
        problem, _, hint = found.detail.rpartition("\n    → ")
        return [Difference(f"of a short chat, {problem}", hint, fatal=True)]
    differences = [*fatal([*output_rows(student), *output_rows(teacher)])]
    differences += begins_twice(student, ours) + begins_twice(teacher, aligner.teacher)
    sizes = {len(side.tokenizer.get_vocab()) for side in (student, teacher)}
    if sizes != {shared}:
        problem = f"teacher and student share the first {shared} tokens"
        differences.append(Difference(problem, "the teacher's others are left out of its softmax"))
    return differences
