"""Cheap checks that stages make before anything heavy starts."""

from __future__ import annotations

import json
from pathlib import Path

from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.errors import ConfigIssue, ModelError
from easydistill.models.reference import architectures, classifier_problem, resolve
from easydistill.models.student import student_references

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "tokenizer*.py")


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
    """Issues of the models that the student is made of: they lead nowhere, or their files are not whole."""
    weights = not isinstance(models.student, FreshStudent)
    return [
        issue
        for reference in student_references(models)
        for issue in model_issues("models.student", reference) or file_issues("models.student", reference, weights)
    ]


def file_issues(key: str, reference: str, weights: bool) -> list[ConfigIssue]:
    """What is missing in a model's directory for loading it. Other references are checked when they are loaded.

    Args:
        weights: whether its weights are needed, or only its tokenizer.
    """
    directory = Path(reference).expanduser()
    if not directory.is_dir():
        return []
    problems = [_config_problem(directory), _tokenizer_problem(directory)]
    if weights:
        problems.append(_weights_problem(directory))
    hint = "name a directory that `save_pretrained` wrote, whole"
    return [ConfigIssue("config", key, f"{reference}: {problem}", hint) for problem in problems if problem]


def _config_problem(directory: Path) -> str:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"config.json cannot be read: {error}"
    known = isinstance(config, dict) and isinstance(config.get("model_type"), str)
    return "" if known else "config.json names no model_type"


def _tokenizer_problem(directory: Path) -> str:
    if any(next(directory.glob(pattern), None) for pattern in TOKENIZER_FILES):
        return ""
    return "it has no tokenizer (no tokenizer.json, nor another vocabulary)"


def _weights_problem(directory: Path) -> str:
    for index in directory.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{index.name} cannot be read: {error}"
        missing = sorted(name for name in shards if not (directory / name).is_file())
        if missing:
            return f"{len(missing)} of {len(shards)} files of weights are missing, such as {missing[0]}"
        return ""
    if any(next(directory.glob(pattern), None) for pattern in WEIGHT_FILES):
        return ""
    return "it has no weights (no *.safetensors or *.bin)"
