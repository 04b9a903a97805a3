"""A teacher on this machine, through vLLM where it is installed, else through transformers."""

from __future__ import annotations

import importlib.util

from easydistill.config.inference import AutoInferenceConfig
from easydistill.contracts.teacher import TeacherPlan
from easydistill.teachers.backends import transformers, vllm

Config = AutoInferenceConfig


def plan(config: AutoInferenceConfig, model: str, template: str | None) -> TeacherPlan:
    """`models.teacher`, by what is installed. It is known by the backend that is chosen."""
    chosen = transformers if importlib.util.find_spec("vllm") is None else vllm
    return chosen.plan(config, model, template)
