"""On-policy distillation: the student is trained on its own answers, with feedback from the teacher on every token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from easydistill.asking.label import LabelStage, OwnPlans
from easydistill.asking.row_teachers import RowTeachers
from easydistill.config.base import Unfit
from easydistill.config.dataset import DatasetConfig
from easydistill.config.inference import ApiInferenceConfig, AutoInferenceConfig, WorkersOptions
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import TeachersConfig
from easydistill.contracts.teacher import TeacherPlan
from easydistill.engine.stage import Stage
from easydistill.evaluation.config import EvaluationSection
from easydistill.evaluation.stage import EvaluateStage
from easydistill.jobs._launch import check_rollouts
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.stage import OnPolicyStage
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.rows import LabelledRows, PromptRows
from easydistill.teachers import plan_teacher
from easydistill.teachers.sections import ScoringInference


class Job(JobConfig):
    """The teacher is `models.teacher`, or a vLLM server at `inference.base_url`; or each row has one of
    `models.teachers`."""

    job_type: Literal["on_policy_kd"]
    """Which job this is."""
    dataset: DatasetConfig
    inference: ScoringInference = Field(default=AutoInferenceConfig())
    """How the teacher answers, if its answers are needed. With `base_url`, the vLLM server that answers and gives the
    log-probabilities of the student's tokens."""
    models: TeachersConfig
    on_policy: OnPolicyConfig = OnPolicyConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def server(self) -> ApiInferenceConfig | None:
        """The teacher's server; None if the teacher runs in this process."""
        return self.inference if isinstance(self.inference, ApiInferenceConfig) else None

    @property
    def needs_labels(self) -> bool:
        """Whether the teacher's own answers are used, or are to be written to `dataset.labeled_path`."""
        used = self.on_policy.learns_answers or self.evaluation.enabled
        return used or self.dataset.labeled_path is not None

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        if self.server is None and not self.models.teachers_by_key:
            raise Unfit("there is no teacher", "set models.teacher, or inference.base_url (a vLLM server)")
        if isinstance(self.inference, WorkersOptions) and self.inference.workers is not None:
            raise Unfit("the teacher is in the process that trains, not in workers", "remove inference.workers")
        if getattr(self.inference, "device_map", None) is not None:
            problem = "the teacher is beside the student that trains, on one device"
            raise Unfit(problem, "remove inference.device_map, or start a vLLM server and set inference.base_url")
        if self.server is None and self.inference.image is not None:
            raise Unfit("the teacher's scores are those of the images as they are", "remove inference.image")
        if self.dataset.instruction_path is None and self.dataset.labeled_path is None:
            raise Unfit("there are no prompts", "set dataset.instruction_path, or dataset.labeled_path")
        if self.server is not None and self.on_policy.objective == "generalized_jsd":
            raise Unfit(
                "generalized_jsd needs the teacher's full distributions, but a server gives single log-probabilities",
                'set "on_policy": {"objective": "top_k_reverse_kl"} (or "sampled_reverse_kl"), or models.teacher '
                "without inference.base_url",
            )
        if getattr(self.inference, "replicas", None) is not None and not (
            self.needs_labels and self.dataset.instruction_path is not None
        ):
            problem = "inference.replicas answer prompts, but here the teacher only scores, in this process"
            raise Unfit(problem, "remove inference.replicas, or start a vLLM server and set inference.base_url")
        if self.on_policy.max_new_tokens >= self.training.max_length:
            raise Unfit(
                f"on_policy.max_new_tokens ({self.on_policy.max_new_tokens}) leaves no room for a prompt "
                f"within training.max_length ({self.training.max_length})",
                "raise training.max_length, or lower on_policy.max_new_tokens",
            )
        if self.training.max_steps is not None and self.on_policy.kd_steps >= self.training.max_steps:
            raise Unfit(
                f"on_policy.kd_steps ({self.on_policy.kd_steps}) are all of training.max_steps "
                f"({self.training.max_steps}): there would be no rollouts",
                "raise training.max_steps, or lower on_policy.kd_steps",
            )
        if self.training.packing:
            raise Unfit("rollouts cannot be packed", "remove training.packing")
        for name in ("max_tokens_per_batch", "weights", "compile"):
            if getattr(self.training, name) != TrainingConfig.model_fields[name].default:
                raise Unfit(f"training.{name} is not for rollouts", f"remove training.{name}")
        return self

    @model_validator(mode="after")
    def _fits_several_teachers(self) -> Job:
        if self.models.teachers is None:
            return self
        if self.server is not None:
            problem = "models.teachers are models on this machine, and inference.base_url is a server for all rows"
            raise Unfit(problem, "remove inference.base_url, or remove models.teachers")
        if getattr(self.inference, "replicas", None) is not None:
            problem = "inference.replicas serve one model, and each row is answered by its own of models.teachers"
            raise Unfit(problem, "remove inference.replicas")
        return self

    @model_validator(mode="after")
    def _fits_its_processes(self) -> Job:
        check_rollouts(self.launch, "on_policy", self.on_policy.rollouts)
        return self


def plan(job: Job) -> list[Stage]:
    """label (if prompts are given and answers are needed) → train → evaluate."""
    prompts_given = job.dataset.instruction_path is not None
    labels = prompts_given and job.needs_labels
    kind = PromptRows if prompts_given and not labels else LabelledRows
    apart = labels and job.on_policy.learns_answers and job.inference.thoughts == "apart"
    rows = kind(job.dataset, job.evaluation, labels, awaits_thoughts=apart, shown_to=job.models)
    stages: list[Stage] = []
    if labels:
        stages.append(LabelStage(job.dataset, job.inference, _asked(job), unseen=lambda: rows.refuses_images))
    stages.append(OnPolicyStage(rows, job.models, job.training, job.on_policy, job.inference))
    if job.evaluation.enabled:
        stages.append(EvaluateStage(rows, job.models, job.evaluation, job.training.max_length))
    return stages


def _asked(job: Job) -> TeacherPlan | OwnPlans:
    """What answers the prompts: one teacher, or each row's own."""
    template, teachers = job.dataset.template, RowTeachers.of(job.models)
    if teachers is None:
        return plan_teacher(job.inference, job.models.teacher, template)
    models = teachers.references.items()
    return OwnPlans(teachers, {name: plan_teacher(job.inference, model, template) for name, model in models})
