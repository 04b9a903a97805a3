"""Train: labelled rows and a student in; the trained student, saved as transformers loads it, out."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.distillation import DistillationConfig
from easydistill.config.models import ModelsConfig
from easydistill.config.signals import DRAWN_KINDS
from easydistill.config.training import TrainingConfig
from easydistill.data.files import hash_file, read_json, show_directory
from easydistill.data.manifest import RowCounts
from easydistill.data.records import count_reasons
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue
from easydistill.models.size import student_parameters
from easydistill.models.student import Student, check_student, student_identity
from easydistill.stages.checks import needs_extra, student_issues
from easydistill.stages.label import missing_file
from easydistill.stages.rollout import wrote_itself
from easydistill.stages.rows import LabelledRows, render_all
from easydistill.stages.score import SIGNALS, STORE

if TYPE_CHECKING:
    from easydistill.data.chat import ChatRenderer
    from easydistill.trainers.batching import TokenRow
    from easydistill.trainers.distillation import Distillation
    from easydistill.trainers.supervised import TrainingOutcome

MODEL = "model"


@dataclass(frozen=True)
class Teaching:
    """What a student learns beside the labels: the teacher's signals, and through which loss."""

    distillation: DistillationConfig
    store: str | None = None
    """Directory of a store that is there already; by default the one of the score stage."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("score",) if self.store is None else ()

    def directory(self, context: StageContext) -> Path:
        return context.input_path("score", SIGNALS) if self.store is None else Path(self.store)

    def preflight(self) -> list[ConfigIssue]:
        if self.store is None:
            return []
        if not (Path(self.store) / STORE).is_file():
            problem = f"{self.store}: there is no complete signal store here"
            mend = "name the directory of a store (it holds store.json), or set models.teacher to have one made"
            return [ConfigIssue("config", "dataset.logits_path", problem, mend)]
        return self._unsuited(Path(self.store))

    def _unsuited(self, store: Path) -> list[ConfigIssue]:
        """Where signals that are there already do not fit the loss."""
        try:
            about = read_json(store / STORE)["about"]
            made_at, kind = about["temperature"], about["signals"]["kind"]
        except (ValueError, KeyError, TypeError):
            problem = f"{store / STORE}: it does not say how the signals were made"
            return [ConfigIssue("config", "dataset.logits_path", problem, "let a teacher score again")]
        issues: list[ConfigIssue] = []
        if made_at != self.distillation.temperature:
            problem = f"{self.distillation.temperature}, but the signals in {store} were computed at {made_at}"
            issues.append(ConfigIssue("config", "distillation.temperature", problem, f"set it to {made_at}"))
        if kind in DRAWN_KINDS and not self.distillation.linear_in_teacher:
            problem = f"{self.distillation.distillation_type} would be biased by the drawn signals ({kind}) in {store}"
            mend = 'use "forward_kld", or let a teacher score again with signals of kind "top_k"'
            issues.append(ConfigIssue("config", "distillation.distillation_type", problem, mend))
        by_rank = bool(about.get("by_rank"))
        if about.get("align") == "bytes" and by_rank != self.distillation.by_rank:
            kept = "probabilities by rank" if by_rank else "probabilities by token"
            problem = f"{self.distillation.distillation_type} cannot read the signals in {store}, which are {kept}"
            mend = (
                'set distillation_type to "uld", or let a teacher score again'
                if by_rank
                else "let a teacher score again"
            )
            issues.append(ConfigIssue("config", "distillation.distillation_type", problem, mend))
        return issues

    def fingerprint(self) -> dict[str, Any]:
        of_store = hash_file(Path(self.store) / STORE) if self.store is not None else None
        return {"distillation": self.distillation.identity(), "store": of_store}


def student_of_stage(models: ModelsConfig, stage: str | None, context: StageContext) -> ModelsConfig:
    """The models, with the student as an earlier train stage left it; None leaves it as it is made."""
    if stage is None:
        return models
    return models.model_copy(update={"student": str(context.input_path(stage, MODEL))})


class TrainStage:
    """Training of the student on labelled rows, and on a teacher's signals where there are any."""

    offers = ("student",)

    def __init__(
        self,
        rows: LabelledRows,
        models: ModelsConfig,
        training: TrainingConfig,
        teaching: Teaching | None = None,
        *,
        name: str = "train",
        start: str | None = None,
    ) -> None:
        """
        Args:
            name: the stage's, where a job trains more than once.
            start: an earlier train stage, whose student goes on learning; by default the student as it is made.
        """
        self.name = name
        self._rows = rows
        self._models = models
        self._training = training
        self._teaching = teaching
        self._start = start
        self.inputs = (*rows.inputs, *(teaching.inputs if teaching else ()), *((start,) if start else ()))

    def preflight(self) -> list[ConfigIssue]:
        dataset = self._rows.dataset
        issues = missing_file("dataset.template", dataset.template)
        if not self._rows.from_stage:
            issues += missing_file("dataset.labeled_path", dataset.labeled_path)
        issues += student_issues(self._models)
        issues += self._teaching.preflight() if self._teaching else []
        return issues + check_student(self._models) + needs_extra("train", "torch", "transformers", "accelerate")

    def fingerprint(self) -> dict[str, Any]:
        template = self._rows.dataset.template
        return {
            "rows": self._rows.fingerprint(),
            "student": student_identity(self._models),
            "training": self._training.identity(),
            "template": hash_file(Path(template)) if template else None,
            **({"teaching": self._teaching.fingerprint()} if self._teaching else {}),
        }

    def estimate(self, directory: Path) -> Estimate:
        return training_estimate(self._models, self._training)

    def run(self, context: StageContext) -> StageResult:
        from easydistill.data.chat import ChatRenderer
        from easydistill.models.loading import choose_dtype, device
        from easydistill.models.student import build_student
        from easydistill.trainers.batching import TokenRow
        from easydistill.trainers.supervised import train

        samples, heldout, rejected = self._rows.read(context)
        models = student_of_stage(self._models, self._start, context)
        student = build_student(models, choose_dtype("float32", device()))
        renderer = ChatRenderer.from_file(student.tokenizer, student.eos_ids, self._rows.dataset.template)
        rendered, too_long = render_all(renderer, samples, self._training.max_length, self.name)
        rejected += too_long
        rows = [TokenRow(sample.id, row.ids, row.mask, wrote_itself(sample)) for sample, row in rendered]
        outcome = train(
            student,
            rows,
            self._training,
            context.directory / "checkpoints" / context.fingerprint[:12],
            context.reporter,
            context.stop,
            self._distillation(rows, context),
            self.name,
        )
        context.stop.raise_if_requested()
        # In the stage's directory, and shown as `student/` in the run directory.
        files = save_student(student, renderer, self._rows.dataset.template, context.directory / MODEL)
        show_student(context)
        return StageResult(
            outputs=files,
            rows=RowCounts(len(samples) + len(rejected) - len(too_long), len(rendered), count_reasons(rejected)),
            rejected=rejected,
            tokens={"trained": outcome.trained_tokens, "read": sum(len(row.ids) for _, row in rendered)},
            metrics={
                **outcome_metrics(outcome),
                "train_rows": len(rendered),
                "heldout_rows": len(heldout),
                "truncated_rows": sum(row.truncated for _, row in rendered),
                "student": student.description,
            },
        )

    def _distillation(self, rows: list[TokenRow], context: StageContext) -> Distillation | None:
        from easydistill.signals.store import SignalStore
        from easydistill.trainers.distillation import Distillation

        if self._teaching is None:
            return None
        store = SignalStore(self._teaching.directory(context))
        distillation = Distillation(store, self._teaching.distillation, self._training.loss_chunk_bytes)
        distillation.check(rows)
        return distillation


def training_estimate(models: ModelsConfig, training: TrainingConfig) -> Estimate:
    """Disk and memory that training the student takes; unknown where its size is."""
    parameters = student_parameters(models)
    if parameters is None:
        return Estimate()
    # Weights, gradients and Adam's two moments in float32; adapters are small beside frozen weights.
    bytes_each = 4 if training.lora is not None else 16
    return Estimate(
        # The student in two bytes a value, and checkpoints: weights and moments.
        disk_bytes=parameters * (2 + (0 if training.lora else 12) * (training.save_total_limit + 1)),
        memory_bytes=parameters * bytes_each + 3 * training.loss_chunk_bytes,
    )


def show_student(context: StageContext) -> None:
    """Once the student is saved: show it as `student/` in the run directory, and drop the checkpoints."""
    show_directory(context.directory / MODEL, context.run_directory / "student")
    shutil.rmtree(context.directory / "checkpoints", ignore_errors=True)


def outcome_metrics(outcome: TrainingOutcome) -> dict[str, Any]:
    """Figures of a training that are the same whether or not it was interrupted."""
    return {name: value for name, value in asdict(outcome).items() if name != "resumed_from_step"}


def save_student(student: Student, renderer: ChatRenderer, template: str | None, target: Path) -> list[str]:
    """Save model and tokenizer in `target`; the files' paths from the directory that it is in.

    Args:
        template: the file whose template replaces the tokenizer's own, where there is one.
    """
    from easydistill.models.loading import import_torch

    torch = import_torch()
    shutil.rmtree(target, ignore_errors=True)
    student.model.to(getattr(torch, student.save_dtype)).save_pretrained(target)
    if template is not None and not renderer.single_turn:
        student.tokenizer.chat_template = renderer.template
    student.tokenizer.save_pretrained(target)
    return [f"{target.name}/{path.name}" for path in sorted(target.iterdir()) if path.is_file()]
