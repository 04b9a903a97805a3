"""What the sections of extensions share: a key for each, how they are told apart, stand-ins for broken ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import getdoc
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
    model_validator,
)

from easydistill.config.base import Section, Unfit
from easydistill.plain_files import is_reference, short_names
from easydistill.registry import ExtensionError, Registry

OF_FILE = "Of a plain file"
"""Title of sections in the JSON schema that a user's file describes."""
_NAME_OF_FILE = r"\.py(:\w+)?$"
_FILES: Any = {
    "patternProperties": {r"\.py(:\w+)?$": {"type": "object", "description": "A function of a file of yours."}}
}


class NamedSections(Section):
    """A section whose keys are the names of extensions, each with that extension's own section.

    Keys such as `my_rewards.py:brevity` are extensions in plain files. A section with some is of a class of its own.
    """

    model_config = ConfigDict(json_schema_extra=_FILES)

    registry: ClassVar[Registry | None] = None

    @model_validator(mode="wrap")
    @classmethod
    def _with_files(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        named = [name for name in value if is_reference(name)] if isinstance(value, dict) else []
        new = [name for name in named if name not in cls.model_fields]
        if not new or cls.registry is None:
            return handler(value)
        fields: Any = {name: (_section_of_file(cls.registry, name) | None, None) for name in new}
        made: Any = create_model(cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **fields)
        return made.model_validate(value)

    @model_serializer(mode="wrap")
    def _whole(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Also the sections of files, of which the class that a field names does not know."""
        found: dict[str, Any] = handler(self)
        how: Any = {"mode": info.mode, "by_alias": info.by_alias, "exclude_unset": info.exclude_unset}
        more = {name: config.model_dump(**how) for name, config in self.chosen().items() if is_reference(name)}
        return found | more

    def chosen(self) -> dict[str, Any]:
        """The sections that are set, by name."""
        return {name: config for name, config in self if isinstance(config, Section)}

    def identity(self) -> dict[str, Any]:
        """Each chosen section's own identity."""
        chosen = self.chosen()
        return super().identity() | {key: chosen[name].identity() for name, key in short_names(list(chosen)).items()}


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
    made: Any = create_model(name, __base__=base, __module__=module, __doc__=base.__doc__, **fields)
    made.registry = registry
    return made


def _section_of_file(registry: Registry, name: str) -> Any:
    """The section of an extension in a plain file; of one that cannot be used, a section that refuses."""
    try:
        return getattr(registry.module(name), registry.section)
    except ExtensionError as error:
        return refusing(Section, error)


@dataclass(frozen=True)
class _OrFileInSchema:
    """In the JSON schema: the section, or one whose `tag` names a plain file, of which editors know no other key."""

    tag: str

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        of_file = {"title": OF_FILE, "type": "object", "required": [self.tag]}
        return {"anyOf": [handler(core_schema), {**of_file, "properties": {self.tag: {"pattern": _NAME_OF_FILE}}}]}


def or_in_a_file(section: Any, registry: Registry, member: Callable[[Any], Any] = lambda config: config) -> Any:
    """The type of a section whose class is chosen by the registry's `tag`, which may also name a plain file.

    Args:
        section: the type without such files.
        member: as for `section`: what a file's class becomes, or Unfit if it does not suit.
    """
    tag = registry.tag

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        name = value.get(tag) if isinstance(value, dict) else None
        if not isinstance(name, str) or not is_reference(name):
            # An instance of a file's class is of none of the section's.
            return value if getattr(value, "plain_file", None) is not None else handler(value)
        try:
            return member(getattr(registry.module(name), registry.section)).model_validate(value)
        except ValidationError as error:
            # As if the class were one of the section's, whose errors are found behind its name.
            details: Any = [{**each, "loc": (name, *each["loc"])} for each in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, details) from error
        except ExtensionError as error:
            (issue,) = error.issues
            raise _unfit_tag(name, str(tag), Unfit(f"{issue.where}: {issue.problem}", issue.hint)) from error
        except Unfit as error:
            raise _unfit_tag(name, str(tag), error) from error

    as_it_is: Any = SerializeAsAny
    return Annotated[section, WrapValidator(validate), as_it_is(), _OrFileInSchema(str(tag))]


def _unfit_tag(name: str, tag: str, error: Unfit) -> ValidationError:
    """The error of the key that names a class."""
    detail: Any = {"type": "value_error", "loc": (name, tag), "input": name, "ctx": {"error": error}}
    return ValidationError.from_exception_data(name, [detail])


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
