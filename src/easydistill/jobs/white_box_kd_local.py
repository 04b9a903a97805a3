"""White-box distillation: the student is trained on stored signals of the teacher's distributions (paper, Code 3)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from easydistill.asking.label import LabelStage
from easydistill.config.base import Unfit
from easydistill.config.dataset import WhiteBoxDatasetConfig
from easydistill.config.inference import AutoInferenceConfig, for_student
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.contracts.loss import DistillationConfig
from easydistill.engine.stage import Stage
from easydistill.evaluation.config import EvaluationSection
from easydistill.evaluation.stage import EvaluateStage
from easydistill.losses import distillation_section
from easydistill.losses.forward_kld import Config as ForwardKld
from easydistill.methods.distil.forms import Forms
from easydistill.methods.distil.rollout_stage import RolloutStage
from easydistill.methods.distil.rows import RowsWithRollouts
from easydistill.methods.distil.score_stage import ScoreStage, Scoring
from easydistill.methods.distil.teaching import Teaching
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.rows import LabelledRows
from easydistill.models.spread import spread_of
from easydistill.signals.config import SignalsConfig, ThresholdSignals, TopKSignals, TopPSignals
from easydistill.teachers import plan_teacher
from easydistill.teachers.sections import WhiteBoxInference, white_box

Distillation: Any = distillation_section()
ALIGNED_TOP_K = 20
"""Default `k` of top-k signals if teacher and student have different tokenizers, where signals cannot be drawn."""


class Job(JobConfig):
    """`models.teacher` answers prompts, then scores every token of the answers; the student is trained on both."""

    job_type: Literal["white_box_kd_local"]
    """Which job this is."""
    dataset: WhiteBoxDatasetConfig
    inference: WhiteBoxInference = white_box(AutoInferenceConfig)()
    """How the teacher is asked, on this machine."""
    models: ModelsConfig
    signals: SignalsConfig | None = None
    """Which of the teacher's probabilities are stored; by default those of the most probable tokens, and of a random
    sample of the others. See docs/white_box.md."""
    distillation: Distillation = Field(default_factory=ForwardKld, validate_default=True)
    """How far the student is from the teacher (the divergence), and how much of the loss that is."""
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def labels(self) -> bool:
        """Whether the teacher answers prompts; if not, `labeled_path` holds the answers."""
        return self.models.teacher is not None and self.dataset.instruction_path is not None

    @property
    def scores(self) -> bool:
        """Whether the teacher scores the rows; if not, `logits_path` holds its signals."""
        return self.models.teacher is not None

    @property
    def max_length(self) -> int:
        """Maximum length of a row, in tokens."""
        loss: DistillationConfig = self.distillation
        return loss.max_seq_length or self.training.max_length

    @property
    def copies(self) -> int:
        """Copies of a teacher on each machine, if each is on several devices."""
        workers = getattr(self.inference, "workers", None)
        return workers if isinstance(workers, int) else 1

    def kept(self) -> SignalsConfig:
        """What is stored of the teacher's distributions."""
        if self.signals is not None:
            return self.signals
        k = self.inference.top_logits_num
        if k is None and self.distillation.align == "bytes":
            k = ALIGNED_TOP_K
        return ThresholdSignals() if k is None else TopKSignals(kind="top_k", k=k)

    @model_validator(mode="after")
    def _has_rows(self) -> Job:
        if self.models.teacher is None and self.dataset.logits_path is None:
            raise Unfit("there is neither a teacher nor stored signals", "set models.teacher, or dataset.logits_path")
        if not self.labels and self.dataset.labeled_path is None:
            raise Unfit("there are no rows", "set dataset.instruction_path, or dataset.labeled_path")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        length = self.distillation.max_seq_length
        if length is not None and "max_length" in self.training.model_fields_set and self.training.max_length != length:
            problem = f"distillation.max_seq_length is {length} and training.max_length {self.training.max_length}"
            raise Unfit(problem, "keep one of them")
        if self.signals is not None and self.inference.top_logits_num is not None:
            raise Unfit("inference.top_logits_num and signals both say what is stored", "keep one of them")
        if self.scores:
            self._signals_suit_the_loss()
            self._signals_suit_the_teacher()
            self._signals_suit_vllm()
        return self

    def _signals_suit_the_loss(self) -> None:
        kept, loss = self.kept(), self.distillation
        named = loss.distillation_type
        if kept.drawn and not loss.linear_in_teacher:
            raise Unfit(
                f"{named} is not linear in the teacher's probabilities, so drawn signals ({kept.kind}) would bias it",
                'set signals to {"kind": "top_k"} or {"kind": "top_p"}, or distillation_type to "forward_kld"',
            )
        if kept.drawn and loss.tail != "bucket":
            problem = f"tail {loss.tail!r} has no meaning for {kept.kind} signals, whose draws represent the tail"
            raise Unfit(problem, 'leave distillation.tail out, or set signals to {"kind": "top_k"}')

    def _signals_suit_the_teacher(self) -> None:
        kept, align = self.kept(), self.distillation.align
        if align == "none":
            return
        if kept.teachers is not None and len(kept.teachers) > 1:
            problem = f'{len(kept.teachers)} teachers cannot be mixed if distillation.align is "{align}"'
            raise Unfit(problem, "give one teacher")
        if align == "answers":
            return
        if not isinstance(kept, TopKSignals | TopPSignals):
            raise Unfit(
                f'{kept.kind} signals are drawn, which distillation.align "bytes" does not allow: part of the '
                "probability is on tokens that the student does not have",
                f'leave signals out (then top_k with k={ALIGNED_TOP_K}), or set signals.kind to "top_k" or "top_p"',
            )
        if kept.backend == "vllm":
            problem = 'vLLM gives only a few of the teacher\'s tokens, which distillation.align "bytes" cannot map'
            raise Unfit(problem, 'set signals.backend to "transformers"')

    def _signals_suit_vllm(self) -> None:
        kept = self.kept()
        if kept.backend != "vllm":
            return
        if not isinstance(kept, TopKSignals):
            problem = f"vLLM only gives a fixed number of most probable tokens, not {kept.kind} signals"
            raise Unfit(problem, 'set signals.kind to "top_k", or signals.backend to "transformers"')
        if kept.teachers is not None and len(kept.teachers) > 1:
            problem = f"vLLM loads one teacher at a time, not {len(kept.teachers)}"
            raise Unfit(problem, 'set signals.backend to "transformers"')
        if self.distillation.temperature != 1.0:
            problem = f"vLLM gives log-probabilities at temperature 1 only, not {self.distillation.temperature}"
            raise Unfit(problem, 'set signals.backend to "transformers", or distillation.temperature to 1')


def _forms(job: Job) -> Forms | None:
    """How the teacher reads chats, if that is a form of its own with the student's tokens of answers."""
    if job.distillation.align != "answers":
        return None
    return Forms(job.models, job.dataset, job.inference.template, job.inference.chat_template_kwargs or {})


def plan(job: Job) -> list[Stage]:
    """label (unless labels are given) → [rollout] → score (unless signals are given) → train → evaluate."""
    apart = job.labels and job.inference.thoughts == "apart"
    known: dict[str, Any] = {
        "awaits_thoughts": apart,
        "shown_to": job.models,
        "answer_tokens": job.inference.max_new_tokens,
    }
    rows = LabelledRows(job.dataset, job.evaluation, job.labels, **known)
    labelled = rows
    training = job.training.model_copy(update={"max_length": job.max_length})
    device_map = getattr(job.inference, "device_map", None)
    stages: list[Stage] = []
    if job.labels:
        assert job.models.teacher is not None
        teacher = plan_teacher(job.inference, job.models.teacher, job.dataset.template)
        stages.append(LabelStage(job.dataset, job.inference, teacher, unseen=lambda: labelled.refuses_images))
    if job.distillation.needs_student_answers:
        stages.append(RolloutStage(rows, job.models, for_student(job.inference)))
        rows = RowsWithRollouts(job.dataset, job.evaluation, job.labels, **known)
    if job.scores:
        scoring = Scoring(
            job.models,
            job.kept(),
            job.distillation,
            job.max_length,
            job.dataset.logits_path,
            job.inference.template,
            job.inference.chat_template_kwargs or {},
            processes=job.launch.processes if job.launch is not None else 1,
            spread=spread_of(device_map, job.copies),
            gpu_memory_gb=job.launch.gpu_memory_gb if job.launch is not None else None,
        )
        stages.append(ScoreStage(rows, scoring))
    store = None if job.scores else job.dataset.logits_path
    stages.append(TrainStage(rows, job.models, training, Teaching(job.distillation, store)))
    if job.evaluation.enabled:
        stages.append(
            EvaluateStage(
                labelled, job.models, job.evaluation, job.max_length, device_map=device_map, forms=_forms(job)
            )
        )
    return stages
