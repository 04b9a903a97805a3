"""Synthesis operators: one package each, with its prompts. An operator's name is also the name of its job.

A module declares the members of `contracts.operator.OperatorModule` (`Config`, `REASONS`, `run`) and may declare those
of `OperatorDefaults`.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from easydistill.config.base import Section
from easydistill.config.extensions import members
from easydistill.contracts.operator import OPERATOR, OperatorConfig
from easydistill.registry import Registry


def _check(name: str, module: ModuleType) -> list[str]:
    from easydistill.synthesis.tools import prompt_file

    sections = members(module.Config)
    if not sections or not all(issubclass(section, Section) for section in sections):
        return ["`Config` must be a Section"]
    if module.PROMPTS and not all(issubclass(section, OperatorConfig) for section in sections):
        return ["it declares `PROMPTS`, so its `Config` must be an OperatorConfig"]
    missing = [prompt for prompt in module.PROMPTS if prompt_file(prompt, "en", module) is None]
    return [f"there is no prompts/{prompt}.en.txt or prompts/{prompt}.txt beside it" for prompt in missing]


OPERATORS = Registry("operators", __name__, replace(OPERATOR, check=_check), f"{__name__}._function")


def rejection_reasons() -> set[str]:
    """All reason codes with which operators reject candidates."""
    return {reason for module in OPERATORS.loaded().values() for reason in module.REASONS}
