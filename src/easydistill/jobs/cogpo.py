"""Cognitive preference optimisation (CogPO, arXiv 2504.09802): chains of thought that suit one student.

A critic and the student itself tell which of the teacher's chains suit it, others are rewritten; the student is
fine-tuned on those that suit, then learns from pairs with a β of each pair's gap. See `synthesis/operators/cogpo/`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.asking.model import AskedModel
from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Share, Unfit
from easydistill.config.dataset import DatasetConfig, SynthesisDatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.inference import Inference, LocalInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.contracts.operator import Role
from easydistill.engine.stage import Stage
from easydistill.jobs._local_student import local_student
from easydistill.jobs._synthesis import asked_models, need_models
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.stage import PairRows, PreferStage, RowsBesidePairs
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.synthesis.config import CurriculumModels, JudgeConfig, StudentInferenceConfig
from easydistill.synthesis.operators import cogpo
from easydistill.synthesis.sources import FileSource
from easydistill.synthesis.stage import SynthesiseStage


class CogpoDatasetConfig(DatasetConfig):
    """Problems, or pairs that are there already."""

    instruction_path: NonEmptyStr | None = None
    """Problems with known final answers: in the row's own answer, or in a field `reference`, `final_answer` or
    `solution`. A row's own answer is the teacher's chain of thought, unless `synthesis.use_outputs` is off."""
    labeled_path: NonEmptyStr | None = None
    """With problems: where pairs are written too. Without: pairs to train on, rows with `prompt`, `chosen`, `rejected`
    and `beta`."""
    max_samples: PositiveInt | None = None
    """Use only the first so many problems, or pairs where there are no problems."""
    max_rejected_share: Share = 1.0
    """A run whose rejected rows exceed this share of all rows ends with exit code 3."""


class TriesInferenceConfig(StudentInferenceConfig):
    """How the student's several answers to a problem are drawn: on this machine, through transformers."""

    temperature: PositiveFloat = 0.8
    """Sampling temperature."""


class TuningConfig(TrainingConfig):
    """Supervised fine-tuning on the chains that suit the student, before it learns from pairs."""

    runtime_only: ClassVar[frozenset[str]] = TrainingConfig.runtime_only | {"enabled"}

    enabled: bool = True
    """Fine-tune first. The student that comes of it is the reference of the pairs' loss."""

    @model_validator(mode="after")
    def _has_no_directory(self) -> TuningConfig:
        if self.output_dir is not None:
            raise Unfit("the run directory is named elsewhere", "use output_dir at the top")
        return self


class Job(JobConfig):
    """With problems (`dataset.instruction_path`) all of it; with pairs alone (`dataset.labeled_path`) only training."""

    job_type: Literal["cogpo"]
    """Which job this is."""
    dataset: CogpoDatasetConfig
    inference: Inference = Field(default=LocalInferenceConfig())
    """How the teacher is asked for chains and for rewritten ones: a server with `base_url`, else `models.teacher` on
    this machine."""
    judge: JudgeConfig | None = None
    """How the critic is asked, and whoever derives answers from chains; by default the teacher, as for chains."""
    models: CurriculumModels
    student_inference: TriesInferenceConfig = TriesInferenceConfig()
    synthesis: cogpo.Config = cogpo.Config()
    sft: TuningConfig = TuningConfig()
    preference: PreferenceConfig = PreferenceConfig()
    training: DpoTrainingConfig = DpoTrainingConfig()
    """Of the training on pairs."""
    evaluation: HeldoutConfig = HeldoutConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Job:
        if self.preference.sorting:
            problem = f"{self.preference.sorting[0]} sorts the answers of a batch, and each pair has a β of its own"
            raise Unfit(problem, "take another preference.loss_type")
        if self.dataset.instruction_path is None:
            self._trains_alone()
            return self
        need_models(self.inference, self.models.teacher, self.judge, self.models.judge)
        # The default may be written out: a config with every default does.
        if self.preference.beta != type(self.preference)().beta:
            raise Unfit("every pair has the β of its gap, not preference.beta", "set synthesis.beta_small, … instead")
        self._samples_differ()
        if self.synthesis.truncated_are_wrong and self.student_inference.truncation == "reject":
            raise Unfit(
                "synthesis.truncated_are_wrong needs the answers that student_inference.truncation rejects",
                "drop one of the two",
            )
        return self

    def _samples_differ(self) -> None:
        """Refuse to sample where every sample would be the same."""
        asked = self.inference if self.judge is None else self.judge.inference
        if asked.temperature == 0 and self.synthesis.votes > 1:
            section = "inference" if self.judge is None else "judge.inference"
            raise Unfit(
                f"{self.synthesis.votes} votes at temperature 0 are one vote",
                f"raise {section}.temperature, or set synthesis.votes to 1",
            )
        if self.inference.temperature == 0 and self.synthesis.rounds > 1:
            raise Unfit(
                "a rewriting that failed is sampled again, and at temperature 0 it would be the same",
                "raise inference.temperature, or set synthesis.rounds to 1",
            )

    def _trains_alone(self) -> None:
        if self.dataset.labeled_path is None:
            raise Unfit("there are neither problems nor pairs", "set dataset.instruction_path, or dataset.labeled_path")
        makes_pairs = {"inference", "judge", "student_inference", "synthesis", "sft"} & self.model_fields_set
        asked = {name for name in ("teacher", "judge") if getattr(self.models, name) is not None}
        if makes_pairs or asked:
            names = ", ".join([*sorted(makes_pairs), *(f"models.{name}" for name in sorted(asked))])
            raise Unfit(f"{names} can do nothing where pairs are there already", "drop it, or set instruction_path")


def plan(job: Job) -> list[Stage]:
    """synthesise → train-1 (fine-tuning) → train-2 (pairs); `train` alone where there is only one of the two."""
    models, training, preference = job.models, job.training, job.preference
    if job.dataset.instruction_path is None:
        return [PreferStage(PairRows(job.dataset, job.evaluation), models, training, preference, thoughts=True)]
    pairs = PairRows(job.dataset, job.evaluation, SynthesiseStage.name)
    stages: list[Stage] = [_synthesis(job, job.dataset.instruction_path)]
    if not job.sft.enabled:
        return [*stages, PreferStage(pairs, models, training, preference, thoughts=True)]
    suited = RowsBesidePairs(job.dataset, job.evaluation, True, pairs, cogpo.SFT)
    tuning = TrainStage(suited, models, job.sft, name="train-1")
    last = PreferStage(pairs, models, training, preference, name="train-2", start=tuning.name, thoughts=True)
    return [*stages, tuning, last]


def _synthesis(job: Job, instruction_path: str) -> Stage:
    dataset = job.dataset
    source = FileSource(
        SynthesisDatasetConfig(instruction_path=instruction_path, max_samples=dataset.max_samples), cogpo.LABELLED
    )
    inference = job.student_inference.local()
    student = AskedModel(local_student(job.models, inference, dataset.template, None), inference)
    asked: dict[Role, AskedModel] = asked_models(job.inference, job.models.teacher, job.judge, job.models.judge)
    return SynthesiseStage(cogpo.STAGE, job.synthesis, source, {**asked, "student": student}, dataset.labeled_path)
