"""Makes pairs of a better and a worse answer to each prompt, for `dpo` and `reward_model`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from easydistill.asking.model import AskedModel
from easydistill.config.base import NonNegativeFloat, Unfit
from easydistill.config.dataset import SynthesisDatasetConfig
from easydistill.config.inference import ApiInferenceConfig, AutoInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.models import ModelsConfig, StudentRef
from easydistill.contracts.operator import Role
from easydistill.engine.stage import Stage
from easydistill.jobs._local_student import local_student
from easydistill.jobs._synthesis import asked_model, need_judge
from easydistill.synthesis.config import StudentInferenceConfig, SynthesisModels
from easydistill.synthesis.operators import preference_data
from easydistill.synthesis.operators.preference_data.configs import StudentConfig, VerifiableConfig
from easydistill.synthesis.sources import FileSource
from easydistill.synthesis.stage import SynthesiseStage
from easydistill.teachers.sections import Inference, JudgeConfig


class PairModels(SynthesisModels):
    """Teacher, judge and student, as far as they run on this machine."""

    student: StudentRef | None = None
    """The model whose answers are sampled: a model, `{"from": …, "keep_layers": n}` or `{"config": {…}}`."""
    trust_remote_code: bool = False
    """Run code that comes with the student's weights."""

    def with_student(self) -> ModelsConfig:
        """The same models as the config of jobs that train a student."""
        assert self.student is not None
        return ModelsConfig(teacher=self.teacher, student=self.student, trust_remote_code=self.trust_remote_code)


class StudentSamplesConfig(StudentInferenceConfig):
    """How the student is sampled on this machine, through transformers."""

    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 1 draws from the student's own distribution."""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "server" if "base_url" in value else "local"
    return "server" if isinstance(value, ApiInferenceConfig) else "local"


StudentSamples = Annotated[
    Annotated[StudentSamplesConfig, Tag("local")] | Annotated[ApiInferenceConfig, Tag("server")],
    Discriminator(_kind),
]
"""A server if `base_url` is given, else `models.student` on this machine."""


class Job(JobConfig):
    """Pairs made by `synthesis.method`, which decides which of teacher, student and judge are needed. It is an error to
    configure others."""

    job_type: Literal["preference_data"]
    """Which job this is."""
    dataset: SynthesisDatasetConfig
    inference: Inference = Field(default=AutoInferenceConfig())
    """How the teacher is asked: a server with `base_url`, else `models.teacher` on this machine."""
    student_inference: StudentSamples = Field(default=StudentSamplesConfig())
    """How the student is asked: a server with `base_url`, else `models.student` on this machine."""
    models: PairModels = PairModels()
    judge: JudgeConfig | None = None
    """How the judge is asked; by default the teacher judges, with its own settings."""
    synthesis: preference_data.Config = Field(default=StudentConfig())
    """How pairs are made: `student`, `rank`, `verifiable` or `contrastive_prompt`."""

    @property
    def _has_teacher(self) -> bool:
        return not self.inference.needs_model or self.models.teacher is not None

    @property
    def _has_student(self) -> bool:
        return isinstance(self.student_inference, ApiInferenceConfig) or self.models.student is not None

    @property
    def _judge_is_local(self) -> bool:
        return self.judge is not None and bool(self.judge.inference.needs_model)

    @property
    def _teacher_judges(self) -> bool:
        local = self.judge is None or self._judge_is_local
        return "judge" in self.synthesis.roles and self.models.judge is None and local

    @model_validator(mode="after")
    def _has_needed_models(self) -> Job:
        roles, method = self.synthesis.roles, self.synthesis.method
        if "teacher" in roles and not self._has_teacher:
            raise Unfit(f"{method} needs a teacher, and there is none", "set models.teacher, or inference.base_url")
        if "student" in roles and not self._has_student:
            hint = "set models.student, or student_inference.base_url"
            raise Unfit(f"{method} needs a student, and there is none", hint)
        if "judge" in roles and self.judge is None and not self._has_teacher:
            raise Unfit(f"{method} needs a judge, and there is none", "add `judge`, or a teacher, which then judges")
        need_judge(self.judge, self.models.judge, self.models.teacher)
        return self

    @model_validator(mode="after")
    def _needs_configured_models(self) -> Job:
        roles, method = self.synthesis.roles, self.synthesis.method
        if self._has_teacher and "teacher" not in roles and not self._teacher_judges:
            raise Unfit(f"{method} with these settings does not use the teacher", self._how_to_use("teacher"))
        if self._has_student and "student" not in roles:
            raise Unfit(f"{method} with these settings does not use the student", self._how_to_use("student"))
        if self.judge is not None and "judge" not in roles:
            raise Unfit(f"{method} does not use a judge", "remove `judge`")
        if self.models.judge is not None and not self._judge_is_local:
            raise Unfit("models.judge is not used without a `judge` on this machine", 'add "judge": {"inference": {…}}')
        return self

    @model_validator(mode="after")
    def _sets_nothing_unused(self) -> Job:
        for role, has, name, key in (
            ("teacher", self._has_teacher, "inference", "models.teacher"),
            ("student", self._has_student, "student_inference", "models.student"),
        ):
            if name in self.model_fields_set and not has:
                raise Unfit(f"{name} has no effect without a {role}", f"set {key}, or remove {name}")
        if self.models.student is not None and isinstance(self.student_inference, ApiInferenceConfig):
            raise Unfit("the student is on a server, but models.student names another", "remove one of the two")
        return self

    def _how_to_use(self, role: Role) -> str:
        return f"raise {role}_samples, or remove it" if role in self.synthesis.most_samples else "remove it"

    @model_validator(mode="after")
    def _draws_samples(self) -> Job:
        if getattr(self.synthesis, "temperatures", ()):
            return self
        asked = {"teacher": self.inference, "student": self.student_inference}
        for role, count in self.synthesis.most_samples.items():
            if count > 1 and getattr(asked[role], "temperature", None) == 0:
                raise Unfit(f"{count} greedy answers of the {role} would be the same", "raise the temperature")
        return self

    @model_validator(mode="after")
    def _keeps_truncated_answers(self) -> Job:
        if not isinstance(self.synthesis, VerifiableConfig) or not self.synthesis.allow_truncated:
            return self
        asked = {"teacher": ("inference", self.inference), "student": ("student_inference", self.student_inference)}
        sections = [asked[role] for role in sorted(self.synthesis.roles)]
        if all(section.truncation == "reject" for _, section in sections):
            where = " and ".join(f"{name}.truncation" for name, _ in sections)
            raise Unfit(f"synthesis.allow_truncated needs the answers that {where} rejects", "set only one of them")
        return self


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    source = FileSource(job.dataset, preference_data.LABELLED)
    return [SynthesiseStage(preference_data.STAGE, job.synthesis, source, _models(job), job.dataset.labeled_path)]


def _models(job: Job) -> dict[Role, AskedModel]:
    """The models that are asked. Without a judge of its own, the teacher judges."""

    @cache
    def teacher() -> AskedModel:
        return asked_model(job.inference, job.models.teacher)

    def student() -> AskedModel:
        if isinstance(job.student_inference, ApiInferenceConfig):
            return asked_model(job.student_inference, None)
        return local_student(job.models.with_student(), job.student_inference)

    def judge() -> AskedModel:
        if job.judge is None:
            return teacher()
        return asked_model(job.judge.inference, job.models.judge or job.models.teacher)

    models: dict[Role, Callable[[], AskedModel]] = {"teacher": teacher, "student": student, "judge": judge}
    return {role: model() for role, model in models.items() if role in job.synthesis.roles}
