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
from easydistill.data.images import RowImages
from easydistill.data.images.reader import NOT_SEEN
from easydistill.data.reading import Reading, at_most, read_rows
from easydistill.data.records import Rejection, Sample
from easydistill.data.writing import writable
from easydistill.engine.checks import unreadable_rows
from easydistill.engine.devices import answering_bytes
from easydistill.engine.stage import Estimate, Previewed, StageContext, StageResult
from easydistill.errors import ConfigIssue
from easydistill.methods.shared.row_reading import one_writer, read_made
from easydistill.methods.shared.rows import LabelledRows
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
        with one_writer(context, may_have_images=self.refuses_images is None):
            rows, rejected = read_made(context.input_path(round_name(self.number), LABELED_PARQUET), context)
        return list(rows), heldout, rejected


@dataclass(frozen=True)
class _SeedRows:
    """The rows that a curriculum starts from, as far as they are known before they are labelled."""

    rows: LabelledRows

    @property
    def dataset(self) -> DatasetConfig:
        return self.rows.dataset

    @property
    def where(self) -> str:
        return str(self.dataset.instruction_path if self.rows.from_stage else self.dataset.labeled_path)

    def issues(self) -> list[ConfigIssue]:
        return [] if self.rows.from_stage else unreadable_rows("dataset.labeled_path", self.dataset.labeled_path)

    def fingerprint(self) -> dict[str, Any]:
        return self.rows.fingerprint()

    def read(self, most: int | None = None, images: RowImages | None = None) -> Reading:
        path = self.dataset.instruction_path if self.rows.from_stage else self.dataset.labeled_path
        assert path is not None
        columns = self.dataset.column_names
        limit = at_most(most, self.dataset.max_samples)
        return read_rows(path, labelled=None, limit=limit, columns=columns, images=images)


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
        total = len(self._read().samples)
        rows = total - self._rows.heldout_rows(total)
        weights = self._models["teacher"].plan.memory_bytes()
        return Estimate(rows=rows, memory_bytes=None if weights is None else answering_bytes(weights))

    def preview(self, limit: int) -> list[Previewed]:
        note = "the student's own answers come first, then the judge sees them beside the teacher's"
        return [Previewed(self.name, note=note)]

    def run(self, context: StageContext) -> StageResult:
        train, heldout, unreadable = self._rows.read(context)
        unseen = self._unseen_rows(train)
        refused = {rejection.id for rejection in unseen}
        train = [row for row in train if row.id not in refused] if refused else train
        kept, unwritable = writable(train, self.name)
        rows = self._latest_rows(kept, context)
        steps = tapir.run(self._config, rows, Tools(self._config), self._number, heldout)
        return self._finish(rows, unreadable + unseen + unwritable, steps, context)

    def _unseen_rows(self, rows: Sequence[Sample]) -> list[Rejection]:
        """The rejections of rows with images, if one of the models would not see them."""
        if (why := self._unseen()) is None:
            return []
        detail = f"the row has an image; {why}"
        blind = [row for row in rows if row.images]
        return [Rejection(row.id, self.name, NOT_SEEN, detail, 1, list(row.messages)) for row in blind]

    def _latest_rows(self, train: Sequence[Sample], context: StageContext) -> list[Sample]:
        """The training rows and the rows of earlier rounds, the latest version of each id: its answer, task and style
        are not requested again."""
        latest = {row.id: row for row in train}
        for number in range(1, self._number):
            rows, _ = read_made(context.input_path(round_name(number), LABELED_PARQUET), context)
            latest.update((row.id, row) for row in rows)
        return list(latest.values())
