"""Teachers: models that answer requests, behind an API, in vLLM, or in this process.

A backend is a module in `backends/`, or a third party's module behind an entry point `easydistill.teachers`. Its name
is the value of `backend` in an `inference` section. It offers

- `Config`: the section's class, an `InferenceConfig` that declares `backend` as a literal of this name;
- `plan(config, model, template) -> TeacherPlan`: how the teacher is created. `model` is the reference in the config's
  `models` section (None if the class says `needs_model = False`); `template` is a chat-template file for a model
  without one of its own, or None.

Importing a backend loads no heavy library; the functions of its `TeacherPlan` do when they are called. Requests and
answers are defined in `base.py`. `docs/teachers.md` shows a backend.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_args, get_origin

from easydistill.config.inference import ApiInferenceConfig, InferenceConfig, LocalInferenceConfig
from easydistill.errors import ExtensionError
from easydistill.registry import Registry
from easydistill.teachers.base import TeacherPlan

TEACHERS = Registry("teachers", f"{__name__}.backends")


def backend(name: str) -> ModuleType:
    """The backend registered as `name`.

    Raises:
        KeyError: there is none.
        ExtensionError: it lacks something that a backend must offer.
    """
    module = TEACHERS.module(name)
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, InferenceConfig)):
        raise ExtensionError("teachers", name, "has no class `Config` derived from easydistill's InferenceConfig")
    field = config.model_fields["backend"].annotation
    if get_origin(field) is not Literal or get_args(field) != (name,):
        raise ExtensionError("teachers", name, f'its Config must declare `backend: Literal["{name}"]`')
    if config.scores and not issubclass(config, LocalInferenceConfig | ApiInferenceConfig):
        problem = "its Config says that it scores; then it must be a LocalInferenceConfig"
        raise ExtensionError("teachers", name, problem)
    if not callable(getattr(module, "plan", None)):
        raise ExtensionError("teachers", name, "has no function `plan`")
    return module


def plan_teacher(inference: InferenceConfig, model: str | None, template: str | None = None) -> TeacherPlan:
    """The plan for the teacher of an `inference` section.

    Args:
        model: the reference of a model that the section does not name: `models.teacher` or `models.judge`.
        template: `dataset.template`, for a teacher without a chat template of its own.
    """
    assert model is not None or not inference.needs_model
    planned: TeacherPlan = backend(inference.backend).plan(inference, model, template)
    return planned
