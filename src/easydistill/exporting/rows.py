"""The rows on which exports are compared: the user's, or those held out of the student's own training.

And those to which rounding is fitted, which are others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from easydistill.asking.outputs import LABELED_JSON
from easydistill.config.dataset import ColumnsConfig, DatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.exporting.config import CalibrationConfig, ComparedRowsConfig
from easydistill.methods.shared.rows import LabelledRows

_ANSWERS = "stages/*-evaluate/answers.jsonl"
"""Held-out prompts with the teacher's answers, in a run that trained a student."""


@dataclass(frozen=True)
class ComparedRows:
    """Where the rows come from."""

    given: ComparedRowsConfig | None
    """The job's section; None for the rows held out in the run in which the student lies."""
    student: str

    @cached_property
    def labelled(self) -> LabelledRows | None:
        """The rows; None if none were named and none were held out."""
        if self.given is not None:
            dataset = self.given.as_dataset()
        else:
            if (path := heldout_file(self.student)) is None:
                return None
            columns = ColumnsConfig(prompt="prompt", answer="teacher")
            dataset = DatasetConfig(labeled_path=str(path), columns=columns)
        return LabelledRows(dataset, HeldoutConfig(enabled=False), False)

    @property
    def known(self) -> LabelledRows:
        """The rows, once `preflight` has found that there are some."""
        assert self.labelled is not None, "preflight refuses this"
        return self.labelled


@dataclass(frozen=True)
class CalibrationRows:
    """The rows to which formats of few bits fit their rounding."""

    settings: CalibrationConfig
    compared: ComparedRows

    @cached_property
    def labelled(self) -> LabelledRows | None:
        """The rows; None if none were named and the student does not lie beside those that it learnt from."""
        path = self.settings.labeled_path or rows_of_run(self.compared.student)
        if path is None:
            return None
        template = self.compared.given.template if self.compared.given is not None else None
        return LabelledRows(self.settings.as_dataset(path, template), HeldoutConfig(enabled=False), False)

    @property
    def known(self) -> LabelledRows:
        """The rows, once `preflight` has found that there are some."""
        assert self.labelled is not None, "preflight refuses this"
        return self.labelled

    def fingerprint(self) -> dict[str, object]:
        """What the rounding depends on."""
        return {**self.known.fingerprint(), **self.settings.identity()}


def rows_of_run(student: str) -> str | None:
    """The labelled rows beside a student; None if there are none."""
    folder = Path(student).expanduser()
    path = folder.parent / LABELED_JSON
    return str(path) if folder.is_dir() and path.is_file() else None


def heldout_file(student: str) -> Path | None:
    """The held-out rows of the run that made a student; None if it does not lie in such a run."""
    folder = Path(student).expanduser()
    found = sorted(folder.parent.glob(_ANSWERS)) if folder.is_dir() else []
    return found[-1] if found else None
