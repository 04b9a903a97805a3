"""Cheap checks of models and installed libraries, before anything heavy starts."""

from __future__ import annotations

import importlib.util

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


def needs_extra(extra: str, *modules: str) -> list[ConfigIssue]:
    """An issue if one of an extra's modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return []
    mend = f"pip install 'easydistill-toolkit[{extra}]'"
    return [ConfigIssue("this machine", "", f"this job needs {', '.join(missing)}, not installed", mend)]
