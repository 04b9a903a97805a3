"""Training rows with the teacher's answers and with the student's own."""

from __future__ import annotations

from dataclasses import dataclass

from easydistill.data.records import Rejection, Sample
from easydistill.data.spool import Rows
from easydistill.engine.stage import StageContext
from easydistill.methods.shared.row_reading import one_writer, read_made
from easydistill.methods.shared.rows import LabelledRows

ROLLOUTS = "rollouts.parquet"
SUFFIX = "~student"
"""Suffix of the id of a row with the student's answer; the rest is the id of the row with the teacher's."""


def wrote_itself(sample: Sample) -> bool:
    """Whether the row's answer is the student's own."""
    return sample.id.endswith(SUFFIX)


@dataclass(frozen=True)
class RowsWithRollouts(LabelledRows):
    """Labelled rows, and the student's own answers to the same prompts."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs, "rollout")

    def read(self, context: StageContext) -> tuple[Rows[Sample], list[Sample], list[Rejection]]:
        train, heldout, rejected = super().read(context)
        with one_writer(context, may_have_images=self.refuses_images is None):
            own, _ = read_made(context.input_path("rollout", ROLLOUTS), context)
        train.extend(own)
        return train, heldout, rejected
