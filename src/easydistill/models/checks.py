"""Cheap checks that stages make before anything heavy starts."""

from __future__ import annotations

from easydistill.config.models import ModelsConfig
from easydistill.errors import ConfigIssue, ModelError
from easydistill.models.reference import architectures, classifier_problem, resolve
from easydistill.models.student import student_references


def reference_issues(key: str, reference: str) -> list[ConfigIssue]:
    """An issue if a model reference leads nowhere."""
    try:
        resolve(reference)
    except ModelError as error:
        problem, _, hint = str(error).partition("\n    → ")
        return [ConfigIssue("config", key, problem, hint)]
    return []


def model_issues(key: str, reference: str) -> list[ConfigIssue]:
    """An issue if a reference leads nowhere, or to something other than a language model."""
    if issues := reference_issues(key, reference):
        return issues
    found = classifier_problem(reference, architectures(resolve(reference)))
    return [ConfigIssue("config", key, *found)] if found else []


def student_issues(models: ModelsConfig) -> list[ConfigIssue]:
    """Issues of the models that the student is made of."""
    return [issue for reference in student_references(models) for issue in model_issues("models.student", reference)]
