"""Evaluates models on tasks: teacher, student before and after training, any baseline (the paper's Tables 1 and 2)."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, Unfit
from easydistill.config.job import JobConfig
from easydistill.contracts.task import TaskConfig
from easydistill.engine.stage import Stage
from easydistill.task_evaluation.config import ContaminationConfig, NamedModel, SpeedConfig, Task
from easydistill.task_evaluation.exams import exam_of
from easydistill.task_evaluation.speed import SpeedStage
from easydistill.task_evaluation.stage import TasksStage

_ROLES = ("teacher", "before", "after")


class Job(JobConfig):
    """Models answer tasks; scores with intervals, compared in pairs."""

    job_type: Literal["evaluate"]
    """Which job this is."""
    models: dict[NonEmptyStr, NamedModel] = Field(min_length=1)
    """Name → a model, such as `{"teacher": "path", "before": "path", "after": "@sft/student"}`."""
    tasks: list[Task] = Field(min_length=1)
    """What they are asked, such as `{"task": "gsm8k", "data": "gsm8k_test.jsonl"}` or `{"lm_eval": "my.yaml"}`."""
    baseline: NonEmptyStr | None = None
    """Name of the model that the others are compared with; by default the student before training, else the first."""
    judge: NamedModel | None = None
    """The model that scores the replies of tasks with `score: "judge"`."""
    contamination: ContaminationConfig | None = None
    """Training rows in which the evaluated problems are looked for."""
    speed: SpeedConfig | None = None
    """Time the models; `{}` takes the defaults. By default they are not timed."""

    @model_validator(mode="after")
    def _names_fit(self) -> Job:
        repeated = [name for name, count in Counter(task.shown_name for task in self.tasks).items() if count > 1]
        if repeated:
            raise Unfit(f"two tasks have the name {repeated[0]!r}", 'give one of them another, such as "name": "…"')
        if self.baseline is not None and self.baseline not in self.models:
            raise Unfit(f"baseline {self.baseline!r} is none of the models", f"use one of {', '.join(self.models)}")
        taken = Counter(role for role in self.roles.values() if role != "other")
        if double := [role for role, count in taken.items() if count > 1]:
            raise Unfit(f"two models have the role {double[0]!r}", 'set one of them to "other"')
        unknown = [name for name in (self.speed.models if self.speed else []) if name not in self.models]
        if unknown:
            raise Unfit(f"speed.models: {unknown[0]!r} is none of the models", f"use some of {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _has_a_judge_if_needed(self) -> Job:
        judged = [task.shown_name for task in self.tasks if isinstance(task, TaskConfig) and task.scores_with_judge]
        if judged and self.judge is None:
            raise Unfit(f"{judged[0]} is scored by a judge, and there is none", 'set "judge": {"inference": {…}}')
        if not judged and self.judge is not None:
            raise Unfit("no task is scored by a judge", "remove judge")
        return self

    @model_validator(mode="after")
    def _published_figures_are_of_tasks(self) -> Job:
        known = {task.shown_name for task in self.tasks}
        for name, model in self.models.items():
            if other := [task for task in model.published if task not in known]:
                problem = f"models.{name}.published: {other[0]!r} is none of the tasks"
                raise Unfit(problem, f"use the names of tasks: {', '.join(sorted(known))}")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """Model → its place in the comparison."""
        has_after = any(model.role == "after" or name == "after" for name, model in self.models.items())
        student = "before" if has_after else "after"
        default = {**{role: role for role in _ROLES}, "student": student}
        return {name: model.role or default.get(name, "other") for name, model in self.models.items()}

    @property
    def compared_with(self) -> str:
        """Name of the baseline."""
        before = next((name for name, role in self.roles.items() if role == "before"), None)
        return self.baseline or before or next(iter(self.models))

    @property
    def timed(self) -> list[str]:
        """Names of the models to time, the yardstick first."""
        if self.speed is not None and self.speed.models:
            return list(dict.fromkeys(self.speed.models))
        by_role = {role: name for name, role in self.roles.items()}
        chosen = [by_role[role] for role in ("teacher", "after") if role in by_role]
        return chosen if len(chosen) == 2 else list(self.models)


def plan(job: Job) -> list[Stage]:
    """tasks → speed."""
    stages: list[Stage] = [
        TasksStage(job.models, job.tasks, job.compared_with, job.roles, job.judge, job.contamination)
    ]
    if job.speed is not None:
        models = {name: job.models[name] for name in job.timed}
        stages.append(SpeedStage(models, [exam_of(task) for task in job.tasks], job.speed))
    return stages
