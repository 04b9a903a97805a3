"""Chats in which the teacher calls tools for a mock user, checked and judged, for fine-tuning agents."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

from pydantic import Field, model_validator

from easydistill.asking.model import AskedModel
from easydistill.config.base import Section, Unfit
from easydistill.config.inference import AutoInferenceConfig
from easydistill.config.models import ModelRef
from easydistill.contracts.operator import Role
from easydistill.engine.stage import Stage
from easydistill.jobs._synthesis import SynthesisJob, asked_model
from easydistill.synthesis.config import SynthesisModels
from easydistill.synthesis.operators import agent_trajectories
from easydistill.synthesis.operators.agent_trajectories.configs import FunctionTools, SimulatedTools
from easydistill.synthesis.sources import FileSource
from easydistill.synthesis.stage import SynthesiseStage
from easydistill.synthesis.tool_functions import asked_functions
from easydistill.teachers.sections import Inference


class AgentModels(SynthesisModels):
    """Teacher, mock user, simulator of tools, and judge, as far as they run on this machine."""

    user: ModelRef | None = None
    """The model that plays the user; by default the teacher."""
    simulator: ModelRef | None = None
    """The model that plays the tools; by default the teacher."""


class ActorConfig(Section):
    """Another model, or other sampling, for playing the user or the tools."""

    inference: Inference = Field(default=AutoInferenceConfig())
    """How it is asked."""


class Job(SynthesisJob):
    """Chats with tools: the rows of `dataset.instruction_path` are tasks, and each is played to its end."""

    job_type: Literal["agent_trajectories"]
    """Which job this is."""
    models: AgentModels = AgentModels()
    user: ActorConfig | None = None
    """How the model that plays the user is asked; by default the teacher plays it, with its own settings."""
    simulator: ActorConfig | None = None
    """How the model that plays the tools is asked; by default the teacher plays them, with its own settings."""
    synthesis: agent_trajectories.Config = agent_trajectories.Config()

    @model_validator(mode="after")
    def _configures_what_is_asked(self) -> Job:
        synthesis = self.synthesis
        simulated = isinstance(synthesis.tools, SimulatedTools)
        for name, section, asked, how in (
            ("user", self.user, synthesis.mock_user, "set synthesis.mock_user to true"),
            ("simulator", self.simulator, simulated, 'set synthesis.tools to {"kind": "simulated"}'),
            ("judge", self.judge, synthesis.rubric is not None, "leave synthesis.rubric as it is by default"),
        ):
            reference = getattr(self.models, name)
            if (section is not None or reference is not None) and not asked:
                key = name if section is not None else f"models.{name}"
                raise Unfit(f"{key} has no effect: nothing asks this model", f"remove it, or {how}")
            if reference is not None and section is None:
                raise Unfit(f"models.{name} is not used without `{name}`", f'add "{name}": {{"inference": {{…}}}}')
            if section is not None and section.inference.needs_model and not (reference or self.models.teacher):
                raise Unfit(f"`{name}` has no model", f"set models.{name}, or {name}.inference.base_url")
        played = [role for role, has in self._by_the_teacher.items() if has]
        if self.inference.system_prompt and played:
            raise Unfit(
                f"inference.system_prompt would be sent to the {', the '.join(played)}, too, which the teacher plays; "
                "and it is no part of rows, so no student would see it",
                "put it into the rows as a system message, or name other models for these",
            )
        if synthesis.samples > 1 and getattr(self.inference, "temperature", None) == 0:
            raise Unfit(f"{synthesis.samples} chats at temperature 0 would be the same", "raise inference.temperature")
        return self

    @property
    def _by_the_teacher(self) -> dict[Role, bool]:
        """Which other parts the teacher plays."""
        simulated = isinstance(self.synthesis.tools, SimulatedTools)
        return {
            "user": self.synthesis.mock_user and self.user is None,
            "tools": simulated and self.simulator is None,
            "judge": self.synthesis.rubric is not None and self.judge is None,
        }


def plan(job: Job) -> list[Stage]:
    """synthesise."""
    source = FileSource(job.dataset, agent_trajectories.LABELLED)
    stage = SynthesiseStage(agent_trajectories.STAGE, job.synthesis, source, _models(job), job.dataset.labeled_path)
    return [stage]


def _models(job: Job) -> dict[Role, AskedModel]:
    """The models that are asked; the teacher plays every part that has no model of its own."""

    @cache
    def teacher() -> AskedModel:
        return asked_model(job.inference, job.models.teacher, job.dataset.template)

    def actor(section: ActorConfig | None, reference: str | None) -> AskedModel:
        return teacher() if section is None else asked_model(section.inference, reference or job.models.teacher)

    def judge() -> AskedModel:
        if job.judge is None:
            return teacher()
        return asked_model(job.judge.inference, job.models.judge or job.models.teacher)

    def tools() -> AskedModel:
        found = job.synthesis.tools
        if isinstance(found, FunctionTools):
            return asked_functions(found.file, found.seconds, found.workers)
        return actor(job.simulator, job.models.simulator)

    models: dict[Role, Callable[[], AskedModel]] = {
        "teacher": teacher,
        "user": lambda: actor(job.user, job.models.user),
        "tools": tools,
        "judge": judge,
    }
    wanted = {"teacher", *job.synthesis.roles}
    return {role: make() for role, make in models.items() if role in wanted}
