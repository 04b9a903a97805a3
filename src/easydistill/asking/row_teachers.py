"""Which of a job's teachers a row names: for its answer, for its scores, and where it is held out.

Multi-teacher on-policy distillation merges specialists into one student: each prompt is taught by one of them alone.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from easydistill.config.models import ModelsConfig, TeachersConfig
from easydistill.data.reading.columns import column_value
from easydistill.data.reading.samples import ROW
from easydistill.data.reading.values import is_given
from easydistill.data.records import Sample
from easydistill.errors import DataError
from easydistill.models.reference import resolve

DEFAULT = "models.teacher"
"""Stands for the teacher of the rows that name none. No other can have this name."""


@dataclass(frozen=True)
class RowTeachers:
    """Several teachers, of whom each row names one."""

    models: TeachersConfig

    @classmethod
    def of(cls, models: ModelsConfig) -> RowTeachers | None:
        """None if there is one teacher for all rows, or none."""
        return cls(models) if isinstance(models, TeachersConfig) and models.teachers is not None else None

    @property
    def references(self) -> dict[str, str]:
        """Name → model."""
        first = {} if self.models.teacher is None else {DEFAULT: self.models.teacher}
        return {**first, **(self.models.teachers or {})}

    def name_of(self, row: Sample) -> str:
        """The name of a row's teacher.

        Raises:
            DataError: it names one that is not known, or none where there is none for such rows.
        """
        column = self.models.teacher_column
        value = column_value(row.meta, column)
        if not is_given(value):
            if DEFAULT in self.references:
                return DEFAULT
            raise DataError(
                f"{_where(row)} names no teacher in `{column}`, and there is no models.teacher for such rows\n"
                f"    → write one of {self._known()} there, name the right column in models.teacher_column, or set "
                "models.teacher"
            )
        if isinstance(value, str) and value in (self.models.teachers or {}):
            return value
        raise DataError(
            f"{_where(row)} names the teacher {value!r} in `{column}`, which models.teachers does not know\n"
            f"    → {self._meant(value)}"
        )

    def counts(self, rows: Iterable[Sample]) -> Counter[str]:
        """How many rows each teacher has.

        Raises:
            DataError: as `name_of`, for the first such row.
        """
        return Counter(map(self.name_of, rows))

    def lines(self, counts: Counter[str]) -> list[str]:
        """What a user is told of them, a line each: who teaches how many rows, and who is not named at all."""
        found = [
            f"rows by teacher: {', '.join(f'{name} {counts[name]:,}' for name in self.references if counts[name])}"
        ]
        if idle := [name for name in self.references if not counts[name]]:
            column = self.models.teacher_column
            found.append(f"no row is taught by {', '.join(idle)} (`{column}` names none of them): not loaded")
        return found

    def identity(self) -> dict[str, Any]:
        """Distinguishes these teachers, and how rows name them, from all others."""
        identities = {name: resolve(reference).identity() for name, reference in self.references.items()}
        return {"column": self.models.teacher_column, "models": identities}

    def _known(self) -> str:
        return ", ".join(map(repr, self.models.teachers or {}))

    def _meant(self, value: object) -> str:
        close = difflib.get_close_matches(str(value), self.models.teachers or {}, 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        return f"{meant}It knows {self._known()}: add this one, or correct the row"


def _where(row: Sample) -> str:
    number = row.meta.get(ROW)
    return f"row {row.id}" if number is None else f"row {row.id} (number {number})"
