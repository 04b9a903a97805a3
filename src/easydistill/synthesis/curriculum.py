"""A curriculum round examines the current student and makes its next training rows. See `operators/tapir/`.

A round runs on the training rows and on all prompts that earlier rounds made from them. New prompts must also differ
from held-out rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.asking.model import AskedModel
from easydistill.asking.outputs import LABELED_PARQUET
from easydistill.config.dataset import DatasetConfig
from easydistill.contracts.operator import Role
from easydistill.data.images import NoImages
from easydistill.data.reading import Reading, at_most, read_rows, read_samples
from easydistill.data.records import Rejection, Sample
from easydistill.data.writing import writable
from easydistill.engine.checks import unreadable_rows
from easydistill.engine.stage import Estimate, Previewed, StageContext, StageResult
from easydistill.errors import ConfigIssue
from easydistill.methods.shared.rows import LabelledRows
from easydistill.methods.shared.sight import TRAINS_ON_TEXT
from easydistill.synthesis.operators import tapir
from easydistill.synthesis.stage import SynthesiseStage
from easydistill.synthesis.tools import Tools


def round_name(number: int) -> str:
    """Name of the stage of round `number`."""
    return f"curriculum-{number}"


@dataclass(frozen=True)
class RoundRows(LabelledRows):
    """Training rows made by a round; the held-out rows are those of the original data."""

    number: int

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*super().inputs, round_name(self.number))

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        _, heldout, _ = super().read(context)
        rows, rejected = read_samples(context.input_path(round_name(self.number), LABELED_PARQUET), labelled=True)
        return list(rows), heldout, rejected


@dataclass(frozen=True)
class _SeedRows:
    """The rows that a curriculum starts from, as far as they are known before they are labelled."""

    rows: LabelledRows

    @property
    def _dataset(self) -> DatasetConfig:
        return self.rows.dataset

    @property
    def where(self) -> str:
        return str(self._dataset.instruction_path if self.rows.from_stage else self._dataset.labeled_path)

    def issues(self) -> list[ConfigIssue]:
        return [] if self.rows.from_stage else unreadable_rows("dataset.labeled_path", self._dataset.labeled_path)

    def fingerprint(self) -> dict[str, Any]:
        return self.rows.fingerprint()

    def read(self, most: int | None = None) -> Reading:
        path = self._dataset.instruction_path if self.rows.from_stage else self._dataset.labeled_path
        assert path is not None
        columns = self._dataset.column_names
        limit = at_most(most, self._dataset.max_samples)
        return read_rows(path, labelled=None, limit=limit, columns=columns, images=NoImages(TRAINS_ON_TEXT))


class CurriculumStage(SynthesiseStage):
    """Round `number` of a curriculum, counted from 1."""

    def __init__(
        self,
        number: int,
        config: tapir.Config,
        rows: LabelledRows,
        models: dict[Role, AskedModel],
        trained: str | None,
    ) -> None:
        """
        Args:
            rows: training and held-out rows.
            models: teacher, judge and student; the student is the one trained by the stage `trained`.
            trained: the stage that trained the student before this round; None in the first round.
        """
        super().__init__(tapir.STAGE, config, _SeedRows(rows), models, None)
        self.name = round_name(number)
        self._number = number
        self._rows = rows
        earlier = [round_name(other) for other in range(1, number)]
        self.inputs = (*rows.inputs, *earlier, *((trained,) if trained else ()))

    def preflight(self) -> list[ConfigIssue]:
        # Issues with prompts name the section `synthesis`; in this job it is `curriculum`.
        return [
            replace(issue, path=issue.path.replace("synthesis.", "curriculum.", 1))
            if issue.path.startswith("synthesis.")
            else issue
            for issue in super().preflight()
        ]

    def estimate(self, directory: Path) -> Estimate:
        """Rows only: the number of requests depends on how many rows turn out to be hard."""
        total = len(self._source.read().samples)
        rows = total - self._rows.heldout_rows(total)
        return Estimate(rows=rows, memory_bytes=self._models["teacher"].plan.memory_bytes())

    def preview(self, limit: int) -> list[Previewed]:
        note = "the student's own answers come first, then the judge sees them beside the teacher's"
        return [Previewed(self.name, note=note)]

    def run(self, context: StageContext) -> StageResult:
        train, heldout, unreadable = self._rows.read(context)
        kept, unwritable = writable(train, self.name)
        rows = self._latest_rows(kept, context)
        steps = tapir.run(self._config, rows, Tools(self._config), self._number, heldout)
        return self._finish(rows, unreadable + unwritable, steps, context)

    def _latest_rows(self, train: Sequence[Sample], context: StageContext) -> list[Sample]:
        """The training rows and the rows of earlier rounds, the latest version of each id: its answer, task and style
        are not requested again."""
        latest = {row.id: row for row in train}
        for number in range(1, self._number):
            rows, _ = read_samples(context.input_path(round_name(number), LABELED_PARQUET), labelled=True)
            latest.update((row.id, row) for row in rows)
        return list(latest.values())
