"""A teacher behind an OpenAI-compatible API, as jobs plan it."""

from __future__ import annotations

from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue
from easydistill.stages.label import TeacherPlan
from easydistill.teachers.base import Teacher, bare_url


def api_teacher(inference: ApiInferenceConfig) -> TeacherPlan:
    """How the label stage gets the teacher at `inference.base_url`."""

    def make(context: StageContext) -> Teacher:
        from easydistill.teachers.openai import OpenAITeacher

        return OpenAITeacher(inference, context.redactor)

    def identity() -> dict[str, Any]:
        return {"base_url": bare_url(inference.base_url), "model": inference.model}

    def preflight() -> list[ConfigIssue]:
        if inference.base_url != "ENDPOINT":
            return []
        problem = '"ENDPOINT" stands for the address of your API'
        return [ConfigIssue("config", "inference.base_url", problem, "e.g. http://localhost:8000/v1")]

    return TeacherPlan(make, identity, preflight)
