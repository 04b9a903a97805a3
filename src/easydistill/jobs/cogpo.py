"""Cognitive preference optimisation (CogPO, arXiv 2504.09802): chains of thought that suit one student.

A critic decides, from the student's own tries, which of the teacher's chains suit it; others are rewritten. The student
is fine-tuned on the suitable chains and then trained on pairs, each with the β of its gap. See
`synthesis/operators/cogpo/`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Share, Unfit
from easydistill.config.dataset import DatasetConfig, PairColumnsConfig, SynthesisDatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.inference import AutoInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._launch import check_pair_losses
from easydistill.jobs._local_student import local_student
from easydistill.jobs._synthesis import asked_models, need_models
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.stage import DpoStage
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.pairs import PairRows, RowsBesidePairs
from easydistill.synthesis.config import CurriculumModels, StudentInferenceConfig
from easydistill.synthesis.operators import cogpo
from easydistill.synthesis.sources import FileSource
from easydistill.synthesis.stage import SynthesiseStage
from easydistill.teachers.sections import Inference, JudgeConfig


class CogpoDatasetConfig(DatasetConfig):
    """Problems, or existing pairs."""

    instruction_path: NonEmptyStr | None = None
    """Problems with known final answers, stated in the row's own answer or given as `reference`, `final_answer` or
    `solution`. A row's own answer is the teacher's chain of thought, unless `synthesis.use_outputs` is off."""
    labeled_path: NonEmptyStr | None = None
    """With problems: a further file to which pairs are written. Without: pairs to train on, rows with `prompt`,
    `chosen`, `rejected` and `beta`."""
    max_samples: PositiveInt | None = None
    """Use only this many problems (or pairs, if there are no problems), from the start of the file."""
    columns: PairColumnsConfig | None = None
    """Names of the columns, if they are not among those that are known."""
    max_rejected_share: Share = 1.0
    """A run whose rejected rows exceed this share of all rows ends with exit code 3."""


class TriesInferenceConfig(StudentInferenceConfig):
    """How the student's answers to a problem are sampled: on this machine, through transformers."""

    temperature: PositiveFloat = 0.8
    """Sampling temperature."""


class TuningConfig(TrainingConfig):
    """Supervised fine-tuning on the suitable chains, before the training on pairs."""

    runtime_only: ClassVar[frozenset[str]] = TrainingConfig.runtime_only | {"enabled"}

    enabled: bool = True
    """Fine-tune first. The fine-tuned student is the reference model of the training on pairs."""

    @model_validator(mode="after")
    def _has_no_directory(self) -> TuningConfig:
        if self.output_dir is not None:
            raise Unfit("the run directory is not set here", "use the job's own output_dir")
        return self


class Job(JobConfig):
    """The whole method if there are problems (`dataset.instruction_path`); with existing pairs, only the training."""

    job_type: Literal["cogpo"]
    """Which job this is."""
    dataset: CogpoDatasetConfig
    inference: Inference = Field(default=AutoInferenceConfig())
    """How the teacher is asked, who writes and rewrites chains: a server with `base_url`, else `models.teacher` on this
    machine."""
    judge: JudgeConfig | None = None
    """How the judge is asked, who is the critic and derives answers from chains; by default the teacher."""
    models: CurriculumModels
    student_inference: TriesInferenceConfig = TriesInferenceConfig()
    synthesis: cogpo.Config = cogpo.Config()
    sft: TuningConfig = TuningConfig()
    preference: PreferenceConfig = PreferenceConfig()
    training: DpoTrainingConfig = DpoTrainingConfig()
    """Training on pairs."""
    launch: LaunchConfig | None = None
    """Train in several processes."""
    evaluation: HeldoutConfig = HeldoutConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        if self.preference.sorting:
            problem = f"{self.preference.sorting[0]} sorts the answers of a batch, but each pair has its own β"
            raise Unfit(problem, "use another preference.loss_type")
        check_pair_losses(self.launch, self.preference)
        if self.dataset.instruction_path is None:
            self._only_trains()
            return self
        need_models(self.inference, self.models.teacher, self.judge, self.models.judge)
        # The default is allowed: a config may spell out every default.
        if self.preference.beta != type(self.preference)().beta:
            raise Unfit("every pair has the β of its gap, not preference.beta", "set synthesis.beta_small, … instead")
        self._samples_differ()
        if self.synthesis.truncated_are_wrong and self.student_inference.truncation == "reject":
            raise Unfit(
                "synthesis.truncated_are_wrong needs the answers that student_inference.truncation rejects",
                "set only one of them",
            )
        return self

    def _samples_differ(self) -> None:
        """Refuse to draw several samples at temperature 0."""
        asked = self.inference if self.judge is None else self.judge.inference
        if getattr(asked, "temperature", None) == 0 and self.synthesis.votes > 1:
            section = "inference" if self.judge is None else "judge.inference"
            raise Unfit(
                f"{self.synthesis.votes} votes at temperature 0 would be the same",
                f"raise {section}.temperature, or set synthesis.votes to 1",
            )
        if getattr(self.inference, "temperature", None) == 0 and self.synthesis.rounds > 1:
            raise Unfit(
                "a failed rewriting is sampled again, which at temperature 0 gives the same one",
                "raise inference.temperature, or set synthesis.rounds to 1",
            )

    def _only_trains(self) -> None:
        if self.dataset.labeled_path is None:
            raise Unfit("there are neither problems nor pairs", "set dataset.instruction_path, or dataset.labeled_path")
        makes_pairs = {"inference", "judge", "student_inference", "synthesis", "sft"} & self.model_fields_set
        asked = {name for name in ("teacher", "judge") if getattr(self.models, name) is not None}
        if makes_pairs or asked:
            names = ", ".join([*sorted(makes_pairs), *(f"models.{name}" for name in sorted(asked))])
            problem = f"{names} has no effect on a job that only trains on existing pairs"
            raise Unfit(problem, "remove it, or set dataset.instruction_path")


def plan(job: Job) -> list[Stage]:
    """synthesise → train-1 (fine-tuning) → train-2 (pairs); just `train` if there is only one training."""
    models, training, preference = job.models, job.training, job.preference
    if job.dataset.instruction_path is None:
        pairs = PairRows(job.dataset, job.evaluation, shown_to=models)
        return [DpoStage(pairs, models, training, preference)]
    pairs = PairRows(job.dataset, job.evaluation, SynthesiseStage.name, shown_to=models)
    stages: list[Stage] = [_synthesis(job, job.dataset.instruction_path)]
    if not job.sft.enabled:
        return [*stages, DpoStage(pairs, models, training, preference)]
    suited = RowsBesidePairs(job.dataset, job.evaluation, True, pairs, cogpo.SFT, shown_to=models)
    tuning = TrainStage(suited, models, job.sft, name="train-1")
    last = DpoStage(pairs, models, training, preference, name="train-2", start=tuning.name)
    return [*stages, tuning, last]


def _synthesis(job: Job, instruction_path: str) -> Stage:
    dataset = job.dataset
    source = FileSource(
        SynthesisDatasetConfig(
            instruction_path=instruction_path,
            max_samples=dataset.max_samples,
            image_folder=dataset.image_folder,
            fetch_images=dataset.fetch_images,
        ),
        cogpo.LABELLED,
    )
    student = local_student(job.models, job.student_inference, dataset)
    asked = asked_models(job.inference, job.models.teacher, job.judge, job.models.judge)
    return SynthesiseStage(cogpo.STAGE, job.synthesis, source, {**asked, "student": student}, dataset.labeled_path)
