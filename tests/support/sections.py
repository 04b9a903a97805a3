"""All config sections, and sections with one more field than they have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, create_model

from easydistill.config.base import Section
from easydistill.config.identity import recorded_name
from easydistill.evaluation.metrics import METRICS
from easydistill.jobs import JOBS
from easydistill.losses import LOSSES
from easydistill.registry import Registry
from easydistill.rewards import REWARDS
from easydistill.synthesis.operators import OPERATORS

REGISTRIES: tuple[Registry, ...] = (JOBS, LOSSES, METRICS, OPERATORS, REWARDS)


def _below(cls: type[Section]) -> Iterator[type[Section]]:
    for child in cls.__subclasses__():
        yield child
        yield from _below(child)


def section_classes() -> list[type[Section]]:
    """Every section class that a job or an extension of ours uses, abstract ones included; jobs too."""
    for registry in REGISTRIES:
        for name in registry.names():
            registry.module(name)
    return [cls for cls in dict.fromkeys(_below(Section)) if cls.__module__.startswith("easydistill.")]


def by_recorded_name() -> dict[str, type[Section]]:
    """The classes that are called so, or that state the name; of several that share one, the first."""
    found: dict[str, type[Section]] = {}
    for cls in section_classes():
        name = recorded_name(cls)
        if name is not None:
            found.setdefault(name, cls)
    return found


def with_field(cls: type[Section], name: str, kind: Any, default: Any) -> type[Section]:
    """The class as a later version would have it, with one more field."""
    fields: dict[str, Any] = {name: (kind, default)}
    return create_model(cls.__name__, __base__=cls, **fields)


def with_fields_inside(cls: type[BaseModel], name: str) -> Any:
    """A job's class whose sections all have one more optional field."""
    fields: dict[str, Any] = {}
    for key, field in cls.model_fields.items():
        # Without the validators that stand around a member of a union.
        choices = [
            get_args(choice)[0] if get_origin(choice) is Annotated else choice
            for choice in get_args(field.annotation) or (field.annotation,)
        ]
        for section in (choice for choice in choices if isinstance(choice, type) and issubclass(choice, Section)):
            later: Any = with_field(section, name, int | None, None)
            given = field.get_default(call_default_factory=True)
            default = later(**given.model_dump()) if isinstance(given, section) else given
            fields[key] = (later | None if type(None) in choices else later, ... if field.is_required() else default)
    return create_model(cls.__name__, __base__=cls, **fields)
