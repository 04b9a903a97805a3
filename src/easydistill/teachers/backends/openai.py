"""A teacher behind an OpenAI-compatible API."""

from __future__ import annotations

from typing import Any

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Teacher, TeacherPlan, endpoint_name
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue

Config = ApiInferenceConfig


def plan(config: ApiInferenceConfig, model: str | None, template: str | None) -> TeacherPlan:
    """The plan by which a stage gets the teacher at `inference.base_url`."""

    def make(context: StageContext) -> Teacher:
        from easydistill.teachers.openai.batch.book import DIRECTORY, BatchBook
        from easydistill.teachers.openai.batch.run import BatchStage
        from easydistill.teachers.openai.teacher import OpenAITeacher

        batches = BatchStage(BatchBook(context.directory / DIRECTORY), context.reporter.say)
        return OpenAITeacher(config, context.redactor, batches, context.images, context.budget)

    def identity() -> dict[str, Any]:
        return {"base_url": endpoint_name(config.base_urls), "model": config.model}

    def preflight() -> list[ConfigIssue]:
        if "ENDPOINT" not in config.base_urls:
            return []
        problem = '"ENDPOINT" is a placeholder for the address of your API'
        return [ConfigIssue("config", "inference.base_url", problem, "e.g. http://localhost:8000/v1")]

    def notes() -> list[str]:
        known = config.built_in_price
        return [] if known is None else [known.words()]

    return TeacherPlan(make, identity, preflight, notes=notes, sees_images=lambda: True)
