"""The forms in which student and teacher read the same chats: template, tokens, images."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.dataset import DatasetConfig
from easydistill.config.models import ModelsConfig
from easydistill.data.files import hash_file
from easydistill.data.records import Rejection, Sample, is_cut
from easydistill.methods.shared.sight import teachers_vision
from easydistill.models.limits import Limits
from easydistill.models.template_files import teacher_shows_date

if TYPE_CHECKING:
    from easydistill.data.chat import Rendered
    from easydistill.models.compatibility import Side
    from easydistill.models.multimodal import Vision
    from easydistill.signals.answers import AnswersAligner
    from easydistill.signals.score import RowToScore

Files = Callable[[str], Path]
"""Digest of an image → its file."""


@dataclass(frozen=True)
class Forms:
    """What student and teachers make of a chat.

    Args:
        teacher_template: a file with the chat template of a teacher that reads chats in its own form, which replaces
            its own; by default `dataset.template` for a teacher without one.
        teacher_template_kwargs: variables of that template, or of the teacher's own.
    """

    models: ModelsConfig
    dataset: DatasetConfig
    teacher_template: str | None = None
    teacher_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def student(self) -> Side:
        from easydistill.models.compatibility import student_side

        dataset = self.dataset
        return replace(
            student_side(self.models),
            template=Path(dataset.template).read_text(encoding="utf-8") if dataset.template else None,
            template_kwargs=dataset.template_kwargs or {},
            thoughts=dataset.thoughts,
        )

    def teacher(self, reference: str) -> Side:
        """A teacher's side; `dataset.template` applies to it only if it has no template of its own or given."""
        from easydistill.models.compatibility import side_of

        student = self.student
        side = side_of(reference, "teacher", trust_remote_code=self.models.trust_remote_code)
        own = getattr(side.tokenizer, "chat_template", None)
        side = replace(side, thoughts=student.thoughts, template_kwargs=self.teacher_template_kwargs)
        if self.teacher_template is not None:
            return replace(side, template=Path(self.teacher_template).read_text(encoding="utf-8"))
        return side if own else replace(side, template=student.template, template_kwargs=student.template_kwargs)

    def identity(self) -> dict[str, Any]:
        """How a teacher reads chats in its own form, where that is not by its own template alone."""
        path = Path(self.teacher_template) if self.teacher_template is not None else None
        given = {
            "teacher_template": hash_file(path) if path is not None and path.is_file() else None,
            "teacher_template_kwargs": dict(self.teacher_template_kwargs),
        }
        return {name: value for name, value in given.items() if value}

    def shows_date(self, reference: str) -> bool:
        """Whether a teacher that reads chats in its own form reads the date in them."""
        return teacher_shows_date(reference, self.teacher_template, self.dataset.template)

    def vision(self, reference: str, files: Files) -> Vision | None:
        """What a teacher sees of images; None for a model of text."""
        return teachers_vision(self.models, reference, files)

    def aligner(self, reference: str, date: datetime.date | None, vision: Vision | None) -> AnswersAligner:
        """Renders chats for a teacher, and compares its answers with the student's.

        Args:
            vision: what it sees of images.
        """
        from easydistill.signals.answers import AnswersAligner

        end = Limits.of_reference(reference, trust_remote_code=self.models.trust_remote_code).positions
        return AnswersAligner(self.student, self.teacher(reference), end, date, vision)


def read_by_teacher(
    aligner: AnswersAligner, rendered: Sequence[tuple[Sample, Rendered]], stage: str
) -> tuple[list[tuple[Sample, Rendered]], list[RowToScore], list[Rejection]]:
    """(the rows whose answers are the same tokens to the teacher, what it reads of each, the others)."""
    from easydistill.signals.answers import UnlikeAnswer

    kept, rows, rejected = list[tuple[Sample, "Rendered"]](), list["RowToScore"](), list[Rejection]()
    for (sample, written), row in zip(rendered, rows_to_score(rendered), strict=True):
        found = aligner.row(row, sample, truncated=written.truncated or is_cut(sample))
        if isinstance(found, UnlikeAnswer):
            rejected.append(Rejection(sample.id, stage, found.reason, found.detail))
        else:
            kept.append((sample, written))
            rows.append(found)
    return kept, rows, rejected


def rows_to_score(rendered: Sequence[tuple[Sample, Rendered]]) -> list[RowToScore]:
    """Rows as the student reads them."""
    from easydistill.signals.score import RowToScore

    return [RowToScore(sample.id, row.ids_T, row.learned, images=row.images) for sample, row in rendered]
