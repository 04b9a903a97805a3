"""Train: labelled rows and a student in; the trained student out, in the format that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.deepspeed import deepspeed_notes
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.training import TrainerConfig
from easydistill.data.manifest import RowCounts
from easydistill.data.messages import Message, is_learned
from easydistill.engine.checks import missing_file, needs_extra, unreadable_rows
from easydistill.engine.machine.room import Needed
from easydistill.engine.stage import Estimate, Previewed, StageContext, StageResult, Work
from easydistill.errors import ConfigIssue
from easydistill.methods.distil.teaching import Teaching
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.estimates import TrainingFacts, memory_notes, training_estimate, work_of_training
from easydistill.methods.shared.foretelling import Foresight
from easydistill.methods.shared.outlook import Outlook, Steps
from easydistill.methods.shared.rendering import student_renderer, template_shows_date
from easydistill.methods.shared.rows import LabelledRows, keep_rejected
from easydistill.methods.shared.sharded_memory import STEPS_ALONE, Besides
from easydistill.methods.shared.sight import (
    ImageSizes,
    features_lines,
    packing_images_issues,
    parts_issues,
    sees_images,
    vision_of,
)
from easydistill.methods.shared.student import (
    MODEL,
    all_checkpoints_of,
    checkpoints_of,
    launch_issues,
    loaded_student,
    optimiser_issues,
    save_student,
    show_student,
    student_of_stage,
    training_fingerprint,
    training_result,
)
from easydistill.methods.shared.thrift import less_memory, training_room
from easydistill.models.checks import student_issues
from easydistill.models.student import check_student, student_references

if TYPE_CHECKING:
    from easydistill.data.records import Sample
    from easydistill.methods.distil.row_loss import Distillation
    from easydistill.methods.sft.batching import TokenRow


class TrainStage:
    """Train the student on labelled rows, and on a teacher's signals if there are any."""

    offers: tuple[str, ...] = ("student",)
    classifies = False
    launch: LaunchConfig | None = None

    def __init__(
        self,
        rows: LabelledRows,
        models: ModelsConfig,
        training: TrainerConfig,
        teaching: Teaching | None = None,
        *,
        name: str = "train",
        start: str | None = None,
    ) -> None:
        """
        Args:
            name: the stage's name, for jobs that train more than once.
            start: an earlier train stage whose student is trained further; by default a new student.
        """
        self.name = name
        self._rows = rows
        self._models = models
        self._training = training
        self._teaching = teaching
        self._start = start
        awaits = rows.awaits_thoughts or rows.are_cited
        self._foresight = Foresight(models, rows.dataset, rows.preview, awaits, max_length=training.max_length)
        self.inputs = (*rows.inputs, *(teaching.inputs if teaching else ()), *((start,) if start else ()))

    def preflight(self) -> list[ConfigIssue]:
        dataset = self._rows.dataset
        issues = missing_file("dataset.template", dataset.template)
        if not self._rows.from_stage:
            issues += unreadable_rows("dataset.labeled_path", dataset.labeled_path)
        issues += student_issues(self._models)
        issues += self._teaching.preflight() if self._teaching else []
        issues += optimiser_issues(self._training) + launch_issues(self.launch, self._training)
        issues += packing_images_issues(self._models, self._training) + parts_issues(self._models, self._training)
        return issues + check_student(self._models) + needs_extra("train", "torch", "transformers", "accelerate")

    def examine(self) -> list[ConfigIssue]:
        """Load the student's tokenizer, read and render the first rows, and try whether rows can be packed."""
        issues = self._foresight.issues() or self._unusable()
        if issues or not isinstance(self._training, TrainingConfig) or not self._training.packing:
            return issues
        from easydistill.methods.sft.packing import packing_issues

        return packing_issues(self._models, self._training.max_length)

    def _unusable(self) -> list[ConfigIssue]:
        """Why there is nothing to train on: in a pipeline, before other jobs are paid for."""
        error = self._foresight.unread
        if error is None or self._rows.from_stage or self._rows.are_cited:
            return []
        problem, _, more = str(error).partition("\n")
        return [ConfigIssue("config", "dataset.labeled_path", problem, more.strip().removeprefix("→ "))]

    def preview(self, limit: int) -> list[Previewed]:
        """The first rows as they are read, where they are in a file: no model is asked for them."""
        if self._rows.from_stage or self._rows.are_cited:
            return []
        chats = self._rows.preview(limit, ImageSizes()).chats[:limit]
        return [Previewed(self.name, messages=chat.messages, note=_learned(chat.messages)) for chat in chats]

    def foretell(self) -> list[str]:
        notes = memory_notes(self.facts)
        return [*notes, *deepspeed_notes(self.launch), *self._foresight.lines(), *self._features()]

    def _features(self) -> list[str]:
        """What features of images will take on disk."""
        training = self._training
        if not isinstance(training, TrainingConfig) or not training.keeps_features or not sees_images(self._models):
            return []
        return features_lines(self._models, self._foresight.images(), whole=not training.trains_connector)

    @property
    def besides(self) -> Besides:
        """What it holds beside its steps."""
        return STEPS_ALONE

    @property
    def steps(self) -> Steps:
        """What its micro-batches are made of."""
        outlook = self._rows_ahead()
        if outlook is not None and self._rows.from_stage:
            longest = self._training.max_length
            outlook = outlook.with_answers(self._rows.answer_tokens or longest, longest)
        return Steps(outlook=outlook, loss="slices" if self._teaching is None else "distribution")

    def _rows_ahead(self, *, prompts: bool = False) -> Outlook | None:
        """The rows to train on, as they are known now."""
        found = self._foresight.outlook(prompts=prompts)
        return None if found is None else found.without(self._rows.heldout_rows(found.rows))

    @property
    def facts(self) -> TrainingFacts:
        """What decides the resources that it takes."""
        return TrainingFacts(self._models, self._training, self.launch, self.besides, self.steps)

    def fingerprint(self) -> dict[str, Any]:
        return {
            **training_fingerprint(self._rows, self._models, self._training, self.launch),
            **({"teaching": self._teaching.fingerprint()} if self._teaching else {}),
        }

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

    def prepare(self, context: StageContext) -> None:
        """Remove what an earlier attempt left unfinished."""
        for directory in all_checkpoints_of(context):
            last_whole_checkpoint(directory)

    def run(self, context: StageContext) -> StageResult:
        from easydistill.methods.sft.rows import training_rows
        from easydistill.methods.sft.trainer import train
        from easydistill.models.multimodal.feature_files import FOLDER as FEATURES

        assert isinstance(self._training, TrainingConfig), "other methods override `run`"
        samples: Sequence[Sample]
        samples, heldout, rejected = self._rows.read(context)
        if self._teaching is not None:
            samples, refused = self._teaching.without_refused(samples, context, self.name)
            rejected += refused
        models = student_of_stage(self._models, self._start, context)
        student = loaded_student(models, self._training.max_length, context, self._training.weights)
        vision = vision_of(student, context)
        renderer = student_renderer(self._rows.dataset, student.tokenizer, student.eos_ids, context, vision)
        found, too_long = training_rows(
            renderer, samples, self._training.max_length, self.name, context.directory, student.limits
        )
        entered = len(samples) + len(rejected)
        # Training does not read them, and takes long.
        del samples
        rejected += too_long
        rows, figures = found.rows, found.figures
        keep_rejected(rejected, rows, context)
        found.thoughts.refuse(self._rows.dataset, made=self._rows.from_stage)
        # Labels were not there when the run began.
        for line in figures.lines():
            context.reporter.say(line)
        outcome = train(
            student,
            rows,
            self._training,
            checkpoints_of(context, found.images),
            context.reporter,
            context.stop,
            self._distillation(rows, self._training.loss_chunk_bytes, context),
            self.name,
            vision,
            context.run_directory / FEATURES,
        )
        context.stop.raise_if_requested()
        if context.rank > 0:
            return StageResult([])
        files = save_student(student, renderer, self._rows.dataset, context.directory / MODEL)
        show_student(context)
        return training_result(
            outcome,
            files,
            RowCounts(entered, len(rows)),
            rejected,
            read=figures.tokens,
            train_rows=len(rows),
            heldout_rows=len(heldout),
            truncated_rows=figures.truncated,
            **figures.metrics(),
            student=student.description,
        )

    def _distillation(
        self, rows: Sequence[TokenRow], chunk_bytes: int | None, context: StageContext
    ) -> Distillation | None:
        from easydistill.methods.distil.row_loss import Distillation
        from easydistill.signals.store import SignalStore

        if self._teaching is None:
            return None
        store = SignalStore(self._teaching.directory(context))
        distillation = Distillation(store, self._teaching.distillation, chunk_bytes)
        distillation.check(rows)
        return distillation


def _learned(messages: Sequence[Message]) -> str:
    count = sum(map(is_learned, messages))
    return f"learned: {count} answer{'s' * (count != 1)} of the assistant" if count else ""
