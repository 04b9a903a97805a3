"""Teachers: models that answer requests, behind an API, in vLLM, or in this process.

A backend is a module in `backends/`, or a third party's module behind an entry point `easydistill.teachers`. Its name
is the value of `backend` in an `inference` section. What it declares stands in `contracts.teacher.TeacherModule`.

Importing a backend loads no heavy library; the functions of its `TeacherPlan` do when they are called. Requests and
answers are defined in `contracts/teacher.py`. `docs/teachers.md` shows a backend.
"""

from __future__ import annotations

from easydistill.config.inference import InferenceConfig
from easydistill.contracts.teacher import TEACHER, TeacherPlan
from easydistill.registry import Registry

TEACHERS = Registry("teachers", f"{__name__}.backends", TEACHER, f"{__name__}.backends._function", tag="backend")


def plan_teacher(inference: InferenceConfig, model: str | None, template: str | None = None) -> TeacherPlan:
    """The plan for the teacher of an `inference` section.

    Args:
        model: the reference of a model that the section does not name: `models.teacher` or `models.judge`.
        template: `dataset.template`, for a teacher without a chat template of its own.
    """
    assert model is not None or not inference.needs_model
    planned: TeacherPlan = TEACHERS.module(inference.backend).plan(inference, model, template)
    return planned
