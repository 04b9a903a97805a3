"""What synthesis jobs share: one stage, and who is asked."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from easydistill.asking.model import AskedModel
from easydistill.config.base import Unfit
from easydistill.config.dataset import SynthesisDatasetConfig
from easydistill.config.inference import ApiInferenceConfig, Inference, SamplingConfig
from easydistill.config.job import JobConfig
from easydistill.contracts.operator import Role
from easydistill.engine.stage import Stage
from easydistill.jobs._api_teacher import api_teacher
from easydistill.jobs._local_teacher import local_teacher
from easydistill.synthesis.config import JudgeConfig, SynthesisModels
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.sources import FileSource, RowSource
from easydistill.synthesis.stage import SynthesiseStage


class SynthesisJob(JobConfig):
    """An operator over the rows of `dataset.instruction_path`, with a teacher and, for some, a judge."""

    dataset: SynthesisDatasetConfig
    inference: Inference = Field(union_mode="left_to_right")
    """How the teacher is asked: a server with `base_url`, else `models.teacher` on this machine."""
    models: SynthesisModels = SynthesisModels()
    judge: JudgeConfig | None = None
    """How whoever judges is asked; by default the teacher, as it is asked for everything else."""

    @model_validator(mode="after")
    def _has_models(self) -> SynthesisJob:
        need_models(self.inference, self.models.teacher, self.judge, self.models.judge)
        return self


class SelectionJob(JobConfig):
    """An operator that asks nobody, over the rows of `dataset.instruction_path`."""

    dataset: SynthesisDatasetConfig


def select(job: SelectionJob, operator: str, config: Any) -> list[Stage]:
    """The one stage of a job without models."""
    source = FileSource(job.dataset, OPERATORS.module(operator).LABELLED)
    return [SynthesiseStage(operator, config, source, {}, job.dataset.labeled_path)]


def synthesise(job: SynthesisJob, operator: str, config: Any, source: RowSource | None = None) -> list[Stage]:
    """The one stage of a synthesis job."""
    models = asked_models(job.inference, job.models.teacher, job.judge, job.models.judge)
    labelled = OPERATORS.module(operator).LABELLED
    return [
        SynthesiseStage(operator, config, source or FileSource(job.dataset, labelled), models, job.dataset.labeled_path)
    ]


def need_models(
    inference: SamplingConfig, teacher: str | None, judge: JudgeConfig | None = None, judging: str | None = None
) -> None:
    """Make sure that somebody can be asked.

    Args:
        teacher: `models.teacher`.
        judging: `models.judge`.

    Raises:
        Unfit: there is no teacher, or no judge, or a judge that nobody would ask.
    """
    if not isinstance(inference, ApiInferenceConfig) and teacher is None:
        raise Unfit("there is no teacher", "set models.teacher, or inference.base_url")
    if judging is not None and judge is None:
        raise Unfit("models.judge is not used without `judge`", 'add "judge": {"inference": {…}}')
    judges_here = judge is not None and not isinstance(judge.inference, ApiInferenceConfig)
    if judges_here and judging is None and teacher is None:
        raise Unfit("there is no judge", "set models.judge, or judge.inference.base_url")


def asked_models(
    inference: SamplingConfig, teacher: str | None, judge: JudgeConfig | None, judging: str | None
) -> dict[Role, AskedModel]:
    """Teacher and judge; arguments as of `need_models`. Without a config of its own the judge is the teacher."""
    asked = asked_model(inference, teacher)
    judged = asked if judge is None else asked_model(judge.inference, judging or teacher)
    return {"teacher": asked, "judge": judged}


def asked_model(inference: SamplingConfig, reference: str | None) -> AskedModel:
    """A model as it is asked: behind an API, or, by its reference, on this machine."""
    if isinstance(inference, ApiInferenceConfig):
        return AskedModel(api_teacher(inference), inference)
    assert reference is not None
    return AskedModel(local_teacher(reference, inference, None), inference)  # type: ignore[arg-type]
