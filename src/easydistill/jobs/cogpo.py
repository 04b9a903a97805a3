"""Cognitive preference optimisation (CogPO, arXiv 2504.09802): chains of thought that suit one student.

A critic and the student itself tell which of the teacher's chains suit it, others are rewritten; the student is
fine-tuned on those that suit, then learns from pairs with a β of each pair's gap. See `operators/cogpo.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from easydistill.config.base import Unfit
from easydistill.config.cogpo import CogpoDatasetConfig, TriesInferenceConfig, TuningConfig
from easydistill.config.curriculum import CurriculumModels
from easydistill.config.dataset import SynthesisDatasetConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.inference import AutoInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.preference import PairTrainingConfig, PreferenceConfig
from easydistill.engine.stage import Stage
from easydistill.jobs._local_student import local_student
from easydistill.jobs._synthesis import asked_models, need_models
from easydistill.operators import cogpo
from easydistill.operators._base import Role
from easydistill.stages.prefer import PairRows, PreferStage, RowsBesidePairs
from easydistill.stages.sources import FileSource
from easydistill.stages.synthesise import AskedModel, SynthesiseStage
from easydistill.stages.train import TrainStage
from easydistill.teachers.sections import Inference, JudgeConfig


class Job(JobConfig):
    """With problems (`dataset.instruction_path`) all of it; with pairs alone (`dataset.labeled_path`) only training."""

    job_type: Literal["cogpo"]
    """Which job this is."""
    dataset: CogpoDatasetConfig
    inference: Inference = Field(default=AutoInferenceConfig())
    """How the teacher is asked for chains and for rewritten ones: a server with `base_url`, else `models.teacher` on
    this machine."""
    judge: JudgeConfig | None = None
    """How the critic is asked, and whoever derives answers from chains; by default the teacher, as for chains."""
    models: CurriculumModels
    student_inference: TriesInferenceConfig = TriesInferenceConfig()
    synthesis: cogpo.Config = cogpo.Config()
    sft: TuningConfig = TuningConfig()
    preference: PreferenceConfig = PreferenceConfig()
    training: PairTrainingConfig = PairTrainingConfig()
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
        if getattr(asked, "temperature", None) == 0 and self.synthesis.votes > 1:
            section = "inference" if self.judge is None else "judge.inference"
            raise Unfit(
                f"{self.synthesis.votes} votes at temperature 0 are one vote",
                f"raise {section}.temperature, or set synthesis.votes to 1",
            )
        if getattr(self.inference, "temperature", None) == 0 and self.synthesis.rounds > 1:
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
