"""A teacher behind an OpenAI-compatible API, as jobs plan it."""

from __future__ import annotations

from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan, endpoint_name
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue


def api_teacher(inference: ApiInferenceConfig) -> TeacherPlan:
    """How the label stage gets the teacher at `inference.base_url`."""

    def make(context: StageContext) -> Teacher:
        from easydistill.teachers._batch import BatchStage
        from easydistill.teachers._batch_book import DIRECTORY, BatchBook
        from easydistill.teachers.openai import OpenAITeacher

        batches = BatchStage(BatchBook(context.directory / DIRECTORY), context.reporter.say)
        return OpenAITeacher(inference, context.redactor, batches)

    def identity() -> dict[str, Any]:
        return {"base_url": endpoint_name(inference.base_urls), "model": inference.model}

    def preflight() -> list[ConfigIssue]:
        if "ENDPOINT" not in inference.base_urls:
            return []
        problem = '"ENDPOINT" stands for the address of your API'
        return [ConfigIssue("config", "inference.base_url", problem, "e.g. http://localhost:8000/v1")]

    return TeacherPlan(make, identity, preflight)
