"""An evaluated model as something to ask, with a task's sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easydistill.asking.model import AskedModel
from easydistill.config.inference import ApiInferenceConfig, InferenceConfig, TransformersInferenceConfig
from easydistill.config.models import ModelsConfig, StudentRef
from easydistill.contracts.teacher import Teacher, TeacherPlan
from easydistill.data.records import content_hash
from easydistill.engine.checks import needs_extra
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigIssue, DataError
from easydistill.models.checks import student_issues
from easydistill.models.reference import converted_directory, resolve
from easydistill.models.size import student_parameters
from easydistill.models.student import build_student, check_student, student_identity, student_references
from easydistill.models.template_files import model_shows_date
from easydistill.task_evaluation.config import EvaluatedModel
from easydistill.teachers import plan_teacher

_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def asked(model: EvaluatedModel, sampling: Mapping[str, Any]) -> AskedModel:
    """The model with a task's sampling.

    Args:
        sampling: keys of an `inference` section: the longest reply, temperature, top-p, seed.
    """
    known = {name: value for name, value in sampling.items() if name in type(model.inference).model_fields}
    if lost := [name for name, value in sampling.items() if name not in known and name != "seed" and value is not None]:
        raise DataError(f"{lost[0]} of the task cannot be given to backend {model.inference.backend}")
    if isinstance(model.inference, ApiInferenceConfig) and not known.get("temperature"):
        # A greedy reply has no use for a seed, which some servers refuse.
        known["seed"] = None
    inference: InferenceConfig = model.inference.model_copy(update=known)
    if isinstance(model.model, str) or model.model is None:
        if model.trust_remote_code:
            inference = inference.model_copy(update={"trust_remote_code": True})
        return AskedModel(plan_teacher(inference, model.model), inference)
    return AskedModel(_made(model, model.model, inference), inference)


def _made(model: EvaluatedModel, student: StudentRef, inference: InferenceConfig) -> TeacherPlan:
    """The plan for a model that the run makes: some layers of another one, or random weights."""
    models = ModelsConfig(student=student, trust_remote_code=model.trust_remote_code)
    options = TransformersInferenceConfig(
        backend="transformers",
        **{
            name: getattr(inference, name)
            for name in TransformersInferenceConfig.model_fields
            if name != "backend" and name in type(inference).model_fields
        },
    )

    def make(context: StageContext) -> Teacher:
        from easydistill.models.loading import choose_dtype, device
        from easydistill.teachers.transformers import TransformersTeacher

        def build() -> Any:
            return build_student(models, choose_dtype(options.dtype, device()))

        identity = student_identity(models)
        return TransformersTeacher("student", options, None, build, identity, context.started, context.images)

    def preflight() -> list[ConfigIssue]:
        needed = needs_extra("train", "torch", "transformers", "accelerate")
        return student_issues(models) + check_student(models) + needed

    def memory_bytes() -> int | None:
        parameters = student_parameters(models)
        return None if parameters is None else parameters * (4 if options.dtype == "float32" else 2)

    return TeacherPlan(
        make,
        lambda: {"backend": "transformers", **student_identity(models)},
        preflight,
        memory_bytes,
        lambda: any(map(model_shows_date, student_references(models))),
    )


def template_hash(model: EvaluatedModel) -> str | None:
    """A hash of the chat template that the model's prompts are rendered with; None of one that a server renders."""
    if not model.is_local or model.model is None:
        return None
    own = getattr(model.inference, "template", None)
    if own is not None:
        return content_hash(Path(own).read_text(encoding="utf-8"))[:16] if Path(own).is_file() else None
    reference = student_references(ModelsConfig(student=model.model))[0]
    source = resolve(reference)
    directory = converted_directory(source) if source.is_gguf else source.path
    if directory is None or not directory.is_dir():
        return None
    return next((_template(directory / name) for name in _TEMPLATES if _template(directory / name)), None)


def _template(path: Path) -> str | None:
    import json

    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    template = text if path.suffix == ".jinja" else json.loads(text).get("chat_template")
    return content_hash(template)[:16] if template else None
