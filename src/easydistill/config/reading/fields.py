"""Inspecting config classes: which keys exist where, and which key a pydantic error location refers to."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from easydistill.config.reading.files import file_section
from easydistill.config.values import KeyPath

_WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list [ … ]",
    dict: "a section { … }",
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes inside a field's annotation."""
    for member in members_of(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            yield member


def members_of(annotation: Any) -> Iterator[Any]:
    """The members of a union except None, without `Annotated`; the annotation itself if it is not a union."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from members_of(typing.get_args(annotation)[0])
    elif origin in {typing.Union, types.UnionType}:
        for argument in typing.get_args(annotation):
            yield from members_of(argument)
    elif annotation is not type(None):
        yield annotation


def is_union(annotation: Any) -> bool:
    """Whether a field accepts several types of values, not counting None."""
    return len(list(members_of(annotation))) > 1


def alternatives(annotation: Any) -> str:
    """What a field accepts, in words: `true, false or "auto"`."""
    words: list[str] = []
    for member in members_of(annotation):
        if member is bool:
            words += ["true", "false"]
        elif typing.get_origin(member) is typing.Literal:
            words += [f'"{value}"' for value in typing.get_args(member)]
        elif isinstance(member, type) and issubclass(member, BaseModel):
            words.append(_WORDS[dict])
        else:
            words.append(_WORDS.get(typing.get_origin(member) or member, str(member)))
    *first, last = dict.fromkeys(words)
    return f"{', '.join(first)} or {last}" if first else last


def literals(annotation: Any) -> list[str]:
    """The words that a field accepts."""
    chosen = [member for member in members_of(annotation) if typing.get_origin(member) is typing.Literal]
    return [value for member in chosen for value in typing.get_args(member) if isinstance(value, str)]


def _tagged(annotation: Any, tag: str | int) -> Iterator[type[BaseModel]]:
    """The class that a discriminated union selects by the tag; all classes of a union without tags."""
    if (of_file := file_section("", tag)) is not None:
        yield of_file
        return
    yield from models_in(dict(_tags(annotation)).get(str(tag), annotation))


def _tags(annotation: Any) -> Iterator[tuple[str, Any]]:
    """The tagged members of a union, also of one inside an optional field."""
    branches = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        branches = branches[:1]
        yield from ((mark.tag, branches[0]) for mark in typing.get_args(annotation)[1:] if isinstance(mark, Tag))
    elif typing.get_origin(annotation) not in {typing.Union, types.UnionType}:
        return
    for branch in branches:
        yield from _tags(branch)


def keys_of(models: Iterable[type[BaseModel]]) -> dict[str, FieldInfo]:
    """Key → field."""
    return {info.alias or name: info for cls in models for name, info in cls.model_fields.items()}


@dataclass(frozen=True)
class Place:
    """What a pydantic error location refers to."""

    path: KeyPath
    """In the config: without the names of union members that pydantic inserts."""
    field: FieldInfo | None
    """The field at that path; None for an unknown key, or inside free-form data."""
    siblings: tuple[type[BaseModel], ...]
    """The classes that have, or would have, the last part of the path as a key."""
    union: KeyPath | None
    """Path of the innermost field at or above this place that accepts several types of values."""


def locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> Place:
    """Follow a pydantic error location through the config classes."""
    path: list[int | str] = []
    here: tuple[type[BaseModel], ...] = (model,)
    siblings: tuple[type[BaseModel], ...] = ()
    field: FieldInfo | None = None
    union: KeyPath | None = None
    annotation: Any = None
    between = False
    for part in loc:
        if between:
            here, between = tuple(_tagged(annotation, part)), False
            continue
        path.append(part)
        siblings = here
        item = _item(annotation)
        field = None if item is not None else keys_of(here).get(str(part))
        annotation = item if item is not None else field.annotation if field is not None else None
        if annotation is None and len(path) > 1:
            annotation = file_section(path[-2], part)
        here = tuple(models_in(annotation)) if annotation is not None else ()
        if annotation is not None and _item(annotation) is None and is_union(annotation):
            union, between = tuple(path), True
    return Place(tuple(path), field, siblings, union)


def _item(annotation: Any) -> Any:
    """What a list or an object with keys of the user's own holds; None of anything else."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) not in {list, dict} or not any(models_in(arguments[-1])):
        return None
    return arguments[-1]


def sections(*models: type[BaseModel], path: KeyPath = ()) -> Iterator[tuple[KeyPath, dict[str, FieldInfo]]]:
    """Every section of a config with its keys, from the top."""
    keys = {name: info for name, info in keys_of(models).items() if not name.startswith("$")}
    yield path, keys
    for name, info in keys.items():
        if inner := list(models_in(info.annotation)):
            yield from sections(*inner, path=(*path, name))
