"""Shared by DPO and reward models: where pairs of answers come from, and the base of their stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from easydistill.asking.label import IMAGE_ROWS
from easydistill.asking.outputs import LABELED_PARQUET
from easydistill.config.dataset import DatasetConfig, PairsConfig
from easydistill.config.deepspeed import deepspeed_notes
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.training import TrainerConfig
from easydistill.data.images import ImageReader, ImageStore, RowImages
from easydistill.data.messages import Chat
from easydistill.data.preferences import PairReading, Preference, read_pairs, read_preferences
from easydistill.data.reading import read_samples
from easydistill.data.records import Rejection, Sample, content_hash, split_heldout
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.spool import Rows
from easydistill.data.writing import write_pairs_json
from easydistill.engine.checks import missing_file, needs_extra, unreadable_rows
from easydistill.engine.machine.room import Needed
from easydistill.engine.stage import Estimate, StageContext, Work
from easydistill.errors import ConfigIssue, DataError
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.estimates import TrainingFacts, memory_notes, training_estimate, work_of_training
from easydistill.methods.shared.foretelling import FirstRows, Foresight
from easydistill.methods.shared.outlook import Steps
from easydistill.methods.shared.rendering import LostThoughts, has_thoughts, template_shows_date
from easydistill.methods.shared.row_reading import ImagesOfRun, Unseen, images_for, one_writer
from easydistill.methods.shared.rows import LabelledRows, heldout_rows
from easydistill.methods.shared.sight import blindness, parts_issues
from easydistill.methods.shared.student import (
    all_checkpoints_of,
    launch_issues,
    optimiser_issues,
    training_fingerprint,
)
from easydistill.methods.shared.thrift import less_memory, training_room
from easydistill.models.checks import student_issues
from easydistill.models.student import check_student, student_references

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer, Missing

_COUNTED = "answers"
GAP = "gap"
"""Field of a pair that names its kind."""
PLAIN = "pairs"
"""Kind of the pairs that do not name one."""
SHOWN_PAIRS = "shown_pairs.json"
"""Some of the pairs with images, for the report, in the format of our files of pairs."""
_MOST_SHOWN = 5


@dataclass(frozen=True)
class PairRows:
    """Pairs from a file or an earlier stage, and their held-out split. Pairs of one prompt stay on the same side."""

    dataset: PairsConfig | DatasetConfig
    evaluation: HeldoutConfig
    stage: str | None = None
    """The stage that makes the pairs; by default they are read from `dataset.labeled_path`."""
    shown_to: ModelsConfig | None = field(default=None, kw_only=True)
    """The student that is shown the images of pairs, if it sees any; without one such pairs are refused."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return () if self.stage is None else (self.stage,)

    @property
    def _path(self) -> str:
        assert self.dataset.labeled_path is not None
        return self.dataset.labeled_path

    @property
    def refuses_images(self) -> str | None:
        """Why pairs with images are refused; None if they are not."""
        return blindness(self.shown_to)

    def issues(self) -> list[ConfigIssue]:
        """Problems with the file."""
        return [] if self.stage is not None else unreadable_rows("dataset.labeled_path", self._path)

    def fingerprint(self) -> dict[str, Any]:
        of_file: dict[str, Any] = {}
        if self.stage is None:
            of_file = {"pairs": hash_rows(self._path), "max_samples": self.dataset.max_samples}
            of_file |= self.dataset.reading_identity()
        return {
            **of_file,
            "seed": self.dataset.seed,
            "heldout": self.evaluation.heldout if self.evaluation.enabled else 0,
            "max_heldout": self.evaluation.max_heldout,
            # Pairs with images are trained on that would else be refused.
            **({"images_seen": True} if self.refuses_images is None else {}),
        }

    def preview(self, most: int, store: ImageStore) -> FirstRows:
        """The first chats of the file; none if a stage makes the pairs.

        Args:
            store: their images are looked at in it.
        """
        if self.stage is not None:
            return FirstRows()
        limit = min(most, self.dataset.max_samples or most)
        why = self.refuses_images
        unseen = None if why is None else Unseen(why)
        try:
            found = self._found(limit, unseen or ImageReader.of(self.dataset, store))
        except DataError:
            if unseen is None or not unseen.rows:
                raise
            return FirstRows(unseen=unseen.rows, blindness=unseen.why)
        chats = [chat for pair in found.pairs for chat in pair.chats]
        hidden = 0 if unseen is None else unseen.rows
        return FirstRows(chats, found.lines(), hidden, why or "", len(found.pairs))

    def _found(self, limit: int | None, images: RowImages) -> PairReading:
        return read_pairs(self._path, limit=limit, columns=self.dataset.column_names, images=images)

    def read(self, context: StageContext | None = None) -> tuple[Rows[Preference], list[Preference], list[Rejection]]:
        """(training pairs, held-out pairs, rows of the file that are not pairs).

        Args:
            context: of a stage with these `inputs`; without one, the pairs are in a file and their images are only
                looked at.
        """
        if context is None:
            found = self._found(self.dataset.max_samples, ImageReader.of(self.dataset, ImageStore()))
            pairs, rejected = found.pairs, found.rejected
        else:
            with one_writer(context, may_have_images=self.refuses_images is None):
                pairs, rejected = self._read(context)
        train, heldout = split_heldout(pairs, heldout_rows(self.evaluation, len(pairs)), self.dataset.seed)
        return train, heldout, rejected

    def _read(self, context: StageContext) -> tuple[list[Preference], list[Rejection]]:
        if self.stage is not None:
            made = context.input_path(self.stage, LABELED_PARQUET)
            return read_preferences(made, images=ImagesOfRun(context.images))
        found = self._found(self.dataset.max_samples, images_for(self.dataset, self.refuses_images, context))
        context.notice(found.notices)
        return found.pairs, found.rejected


@dataclass(frozen=True)
class RowsBesidePairs(LabelledRows):
    """Rows that a synthesis stage made beside its pairs, for fine-tuning first.

    Rows whose prompts are in held-out pairs are held out too, so that neither training sees the evaluation data.
    """

    pairs: PairRows
    kind: str
    """Their name among the operator's kinds of rows."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.pairs.inputs

    def preview(self, most: int, store: ImageStore) -> FirstRows:
        return FirstRows()

    def fingerprint(self) -> dict[str, Any]:
        return self.pairs.fingerprint() | {"kind": self.kind}

    def read(self, context: StageContext) -> tuple[list[Sample], list[Sample], list[Rejection]]:
        assert self.pairs.stage is not None
        _, heldout, _ = self.pairs.read(context)
        held = {pair.prompt_hash for pair in heldout}
        path = context.input_path(self.pairs.stage, f"{self.kind}.parquet")
        rows, rejected = read_samples(path, labelled=True, images=ImagesOfRun(context.images))
        return (
            [row for row in rows if row.prompt_hash not in held],
            [row for row in rows if row.prompt_hash in held],
            rejected,
        )


class PairStage:
    """Base of the stages that train on pairs."""

    offers: tuple[str, ...] = ("student",)
    classifies = False
    launch: LaunchConfig | None = None
    loss: ClassVar[Literal["tiles", "none"]] = "tiles"
    """How the loss holds logits, if it has any."""
    cuts: ClassVar[bool] = True
    """Whether rows that are too long are cut off; otherwise they are rejected."""

    def __init__(self, rows: PairRows, models: ModelsConfig, training: TrainerConfig, name: str = "train") -> None:
        self.name = name
        self._rows, self._models, self._training = rows, models, training
        self._foresight = Foresight(
            models, rows.dataset, rows.preview, counted=_COUNTED, max_length=training.max_length if self.cuts else None
        )
        self.inputs = rows.inputs

    def preflight(self) -> list[ConfigIssue]:
        issues = missing_file("dataset.template", self._rows.dataset.template)
        issues += self._rows.issues()
        issues += student_issues(self._models) + check_student(self._models) + optimiser_issues(self._training)
        issues += launch_issues(self.launch, self._training) + parts_issues(self._models, self._training)
        return issues + needs_extra("train", "torch", "transformers", "accelerate") + needs_extra("trl", "trl")

    def examine(self) -> list[ConfigIssue]:
        """Load the student's tokenizer and render the first rows."""
        return self._foresight.issues()

    def foretell(self) -> list[str]:
        notes = memory_notes(self.facts)
        return [*notes, *deepspeed_notes(self.launch), *self._foresight.lines()]

    def _refuse_lost_thoughts(self, renderer: ChatRenderer, pairs: Iterable[Preference]) -> None:
        """Refuse pairs with thoughts that the template leaves out: they would compare other answers.

        Raises:
            ConfigError: there are some, and `dataset.thoughts` does not say what becomes of them.
        """
        made = self._rows.stage is not None
        LostThoughts.of(_thoughtful(renderer, pairs)).refuse(self._rows.dataset, _COUNTED, made=made)

    def _show_pairs(
        self, pairs: Iterable[Preference], measured: Mapping[str, Mapping[str, float]], context: StageContext
    ) -> dict[str, int]:
        """Keep some of the pairs with images for the report, those first that were measured.

        Args:
            measured: by the ids of held-out pairs, figures to show beside them.

        Returns:
            The metric that counts pairs with images, if there are any.
        """
        shown = [pair for pair in pairs if pair.images]
        if not shown:
            return {}
        shown.sort(key=lambda pair: (pair.id not in measured, content_hash(pair.id)))
        some = [replace(pair, meta={**pair.meta, **measured.get(pair.id, {})}) for pair in shown[:_MOST_SHOWN]]
        write_pairs_json(context.directory / SHOWN_PAIRS, some, context.images)
        return {IMAGE_ROWS: len(shown)}

    def prepare(self, context: StageContext) -> None:
        """Remove what an earlier attempt left unfinished."""
        for directory in all_checkpoints_of(context):
            last_whole_checkpoint(directory)

    def fingerprint(self) -> dict[str, Any]:
        return training_fingerprint(self._rows, self._models, self._training, self.launch)

    def shows_date(self) -> bool:
        return template_shows_date(self._rows.dataset, student_references(self._models))

    def less_memory(self) -> list[str]:
        return less_memory(self)

    def room(self) -> Needed:
        return training_room(self._models, self)

    def estimate(self, directory: Path) -> Estimate:
        return training_estimate(self.facts)

    def work(self) -> Work | None:
        return work_of_training(self.facts)

    @property
    def facts(self) -> TrainingFacts:
        """What decides the resources that it takes."""
        found = self._foresight.outlook()
        if found is not None:
            pairs = found.rows // 2
            found = found.without(2 * heldout_rows(self._rows.evaluation, pairs))
        steps = Steps(of="pairs", outlook=found, loss=self.loss)
        return TrainingFacts(self._models, self._training, self.launch, steps=steps)


def _thoughtful(renderer: ChatRenderer, pairs: Iterable[Preference]) -> Iterator[tuple[Chat, list[Missing]]]:
    """The chats of the pairs' answers that have thoughts, with what the template does not show of each."""
    for pair in pairs:
        for chat, answer in zip(pair.chats, (pair.chosen, pair.rejected), strict=True):
            if not any(has_thoughts(message) for message in answer):
                continue
            try:
                yield chat, renderer.missing(chat)
            except DataError:
                # Such pairs are rejected.
                continue
