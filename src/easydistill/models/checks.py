"""Cheap checks that stages make before anything heavy starts."""

from __future__ import annotations

from easydistill.config.models import ModelsConfig
from easydistill.errors import ConfigIssue, ModelError
from easydistill.models.reference import architectures, no_language_model, resolve
from easydistill.models.student import student_references


def reference_issues(key: str, reference: str) -> list[ConfigIssue]:
    """An issue if a model reference points at nothing."""
    try:
        resolve(reference)
    except ModelError as error:
        problem, _, mend = str(error).partition("\n    → ")
        return [ConfigIssue("config", key, problem, mend)]
    return []


def model_issues(key: str, reference: str) -> list[ConfigIssue]:
    """An issue if a reference points at nothing, or at something else than a language model."""
    if issues := reference_issues(key, reference):
        return issues
    unfit = no_language_model(reference, architectures(resolve(reference)))
    return [ConfigIssue("config", key, *unfit)] if unfit else []


def student_issues(models: ModelsConfig) -> list[ConfigIssue]:
    """Issues for the models that a student is, or is made of."""
    return [issue for reference in student_references(models) for issue in model_issues("models.student", reference)]
