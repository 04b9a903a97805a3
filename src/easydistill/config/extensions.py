"""What the sections of extensions share: a key for each, how they are told apart, stand-ins for broken ones."""

from __future__ import annotations

from inspect import getdoc
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, create_model, model_validator

from easydistill.config.base import Section, Unfit
from easydistill.registry import ExtensionError, Registry


class NamedSections(Section):
    """A section whose keys are the names of extensions, each with that extension's own section."""

    def chosen(self) -> dict[str, Any]:
        """The sections that are set, by name."""
        return {name: config for name, config in self if isinstance(config, Section)}

    def identity(self) -> dict[str, Any]:
        """Each chosen section's own identity."""
        return super().identity() | {name: config.identity() for name, config in self.chosen().items()}


def section_of(registry: Registry, base: type[NamedSections], each: type[Section], name: str, module: str) -> Any:
    """The class of a section with a key for every registered extension.

    Args:
        base: the base of the new class.
        each: the base of the extensions' sections.
        name, module: those of the new class.
    """
    fields: dict[str, Any] = {
        key: (config | None, Field(default=None, description=getdoc(config)))
        for key, config in configs_of(registry, each).items()
    }
    return create_model(name, __base__=base, __module__=module, __doc__=base.__doc__, **fields)


def configs_of(registry: Registry, base: type[Section]) -> dict[str, Any]:
    """The section of every registered extension, by name; those of broken ones derive from `base` and refuse."""
    configs: dict[str, Any] = {name: extension.Config for name, extension in registry.loaded().items()}
    return configs | {name: refusing(base, error) for name, error in registry.broken().items()}


def members(annotation: Any) -> list[Any]:
    """The classes of a section's type: itself, or the members of a union."""
    if isinstance(annotation, type):
        return [annotation]
    return [found for inner in get_args(annotation) for found in members(inner)]


def names_itself(name: str, config: type[Section], field: str) -> list[str]:
    """What is wrong with the literal field by which configs of one kind are told apart."""
    info = config.model_fields.get(field)
    literal = info.annotation if info is not None else None
    if get_origin(literal) is Literal and name in get_args(literal):
        return []
    return [f'`{config.__name__}.{field}` must be Literal["{name}"], the name that it is registered under']


def refusing(base: type[Section], error: ExtensionError) -> Any:
    """A section in place of a broken extension's: it accepts nothing and says why, and all the others still work."""
    (issue,) = error.issues

    def refuse(cls: type[Section], value: Any) -> Any:
        raise Unfit(f"{issue.where}: {issue.problem}", issue.hint)

    refused: Any = classmethod(refuse)
    validators: Any = {"refuse": model_validator(mode="before")(refused)}
    section: Any = create_model("Broken", __base__=base, __validators__=validators, __doc__="Cannot be used.")
    return section
