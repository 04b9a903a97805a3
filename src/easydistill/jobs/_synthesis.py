"""The configs, models and stage that synthesis jobs share."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from easydistill.asking.model import AskedModel
from easydistill.config.base import Unfit
from easydistill.config.dataset import SynthesisDatasetConfig, TeacherDatasetConfig
from easydistill.config.inference import ApiInferenceConfig, InferenceConfig
from easydistill.config.job import JobConfig
from easydistill.contracts.operator import Role
from easydistill.engine.stage import Stage
from easydistill.synthesis.config import SynthesisModels
from easydistill.synthesis.operators import OPERATORS
from easydistill.synthesis.sources import FileSource, RowSource
from easydistill.synthesis.stage import SynthesiseStage
from easydistill.teachers import plan_teacher
from easydistill.teachers.sections import Inference, JudgeConfig


class SynthesisJob(JobConfig):
    """An operator over the rows of `dataset.instruction_path`, with a teacher and optionally a judge."""

    dataset: TeacherDatasetConfig
    inference: Inference = Field(union_mode="left_to_right")
    """How the teacher is asked: a server with `base_url`, else `models.teacher` on this machine."""
    models: SynthesisModels = SynthesisModels()
    judge: JudgeConfig | None = None
    """How the judge is asked; by default the teacher judges, with its own settings."""

    @model_validator(mode="after")
    def _has_models(self) -> SynthesisJob:
        need_models(self.inference, self.models.teacher, self.judge, self.models.judge)
        if self.dataset.template is not None and isinstance(self.inference, ApiInferenceConfig):
            raise Unfit("dataset.template is not used: a server has its own chat template", "remove it")
        return self


class SelectionJob(JobConfig):
    """An operator that asks no model, over the rows of `dataset.instruction_path`."""

    dataset: SynthesisDatasetConfig


def select(job: SelectionJob, operator: str, config: Any) -> list[Stage]:
    """The one stage of a job without models."""
    source = FileSource(job.dataset, OPERATORS.module(operator).LABELLED)
    return [SynthesiseStage(operator, config, source, {}, job.dataset.labeled_path)]


def synthesise(job: SynthesisJob, operator: str, config: Any, source: RowSource | None = None) -> list[Stage]:
    """The one stage of a synthesis job."""
    template = job.dataset.template
    models = asked_models(job.inference, job.models.teacher, job.judge, job.models.judge, template)
    labelled = OPERATORS.module(operator).LABELLED
    return [
        SynthesiseStage(operator, config, source or FileSource(job.dataset, labelled), models, job.dataset.labeled_path)
    ]


def need_models(
    inference: InferenceConfig, teacher: str | None, judge: JudgeConfig | None = None, judging: str | None = None
) -> None:
    """Check that there is a teacher, and a judge if one is configured.

    Args:
        teacher: `models.teacher`.
        judging: `models.judge`.

    Raises:
        Unfit: there is no teacher, or no judge, or a judge that is not used.
    """
    if inference.needs_model and teacher is None:
        raise Unfit("there is no teacher", "set models.teacher, or inference.base_url")
    if judging is not None and judge is None:
        raise Unfit("models.judge is not used without `judge`", 'add "judge": {"inference": {…}}')
    need_judge(judge, judging, teacher)


def need_judge(judge: JudgeConfig | None, judging: str | None, teacher: str | None) -> None:
    """Check that a judge that runs on this machine has a model; arguments and error as for `need_models`."""
    if judge is not None and judge.inference.needs_model and judging is None and teacher is None:
        raise Unfit("there is no judge", "set models.judge, or judge.inference.base_url")


def asked_models(
    inference: InferenceConfig,
    teacher: str | None,
    judge: JudgeConfig | None,
    judging: str | None,
    template: str | None = None,
) -> dict[Role, AskedModel]:
    """Teacher and judge, with the arguments of `need_models`. Without a `judge` section the teacher judges.

    Args:
        template: chat template for a teacher on this machine that has none of its own.
    """
    asked = asked_model(inference, teacher, template)
    judged = asked if judge is None else asked_model(judge.inference, judging or teacher)
    return {"teacher": asked, "judge": judged}


def asked_model(inference: InferenceConfig, reference: str | None, template: str | None = None) -> AskedModel:
    """A model with its inference settings; `reference` names the model if the section does not."""
    return AskedModel(plan_teacher(inference, reference, template), inference)
