"""A teacher on this machine, through vLLM where it is installed, else through transformers."""

from __future__ import annotations

import importlib.util

from easydistill.config.inference import AutoInferenceConfig
from easydistill.contracts.teacher import TeacherPlan
from easydistill.teachers.backends import transformers, vllm

Config = AutoInferenceConfig


def plan(config: AutoInferenceConfig, model: str, template: str | None) -> TeacherPlan:
    """`models.teacher`, by what is installed. It is known by the backend that is chosen."""
    # Servers are asked for by `replicas`: without vLLM, its plan says what is missing.
    by_transformers = importlib.util.find_spec("vllm") is None and config.replicas is None
    chosen = transformers if by_transformers else vllm
    return chosen.plan(config, model, template)
