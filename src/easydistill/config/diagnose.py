"""What pydantic found wrong → issues a person can mend: line, path, value, allowed values, the likely intent."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from easydistill.config.overrides import WHERE
from easydistill.config.syntax import Document, KeyPath
from easydistill.errors import ConfigIssue

_TAGS = {"reference", "pruned", "fresh"}
_PLACEHOLDER_SECRET = "(hidden)"


def closest(word: str, candidates: typing.Iterable[str]) -> str | None:
    """The candidate that `word` was probably meant to be."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    squeezed = word.lower().replace("-", "_").replace(" ", "_")
    match = difflib.get_close_matches(squeezed, lowered, n=1, cutoff=0.7)
    return lowered[match[0]] if match else None


def explain(
    error: ValidationError,
    document: Document,
    model: type[BaseModel],
    overridden: set[KeyPath],
    other_jobs: Mapping[str, type[BaseModel]],
) -> list[ConfigIssue]:
    """One issue for each error, in the order of the file.

    Args:
        error: what validating `document.data` against `model` raised.
        overridden: paths that came from `--set`.
        other_jobs: the other job types, to say where a key that does not apply here belongs.
    """
    issues: dict[tuple[str, str], tuple[tuple[int, ...], ConfigIssue]] = {}
    found = [(_config_path(details["loc"]), details) for details in error.errors(include_url=False)]
    for path, details in _without_alternatives(found):
        where = WHERE if any(path[: len(p)] == p for p in overridden) else document.where(path)
        problem, mend = _describe(details, path, model, other_jobs, document.data)
        line = next(
            (document.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in document.lines),
            0,
        )
        issue = ConfigIssue(where, ".".join(map(str, path)), problem, mend)
        issues.setdefault((issue.path, issue.problem), ((line,), issue))
    return [issue for _, issue in sorted(issues.values(), key=lambda pair: pair[0])]


_KINDS = {"bool": "true, false", "list": "a list", "string": "text", "int": "a whole number", "float": "a number"}


def _without_alternatives(found: list[tuple[KeyPath, Any]]) -> Iterator[tuple[KeyPath, Any]]:
    """One error for each value: pydantic reports every alternative of a union on its own."""
    for number, (path, details) in enumerate(found):
        if details["type"] != "literal_error":
            rivals = [other for where, other in found if where == path and other["type"] == "literal_error"]
            if rivals:
                kind = _KINDS.get(details["type"].split("_")[0], details["type"])
                expected = f"{kind} or {rivals[0]['ctx']['expected']}".replace("'", '"')
                yield path, {**details, "type": "alternatives", "ctx": {"expected": expected}}
            else:
                yield path, details
        elif not any(other != number and where[: len(path)] == path for other, (where, _) in enumerate(found)):
            yield path, details


def _config_path(loc: tuple[int | str, ...]) -> KeyPath:
    # pydantic adds the union's tags and the names of union members to the location; the file has none of them.
    parts: list[int | str] = []
    for part in loc:
        if isinstance(part, str) and (part in _TAGS or "[" in part or part in {"bool", "int", "float", "str"}):
            continue
        parts.append(part)
    return tuple(parts)


def _show(value: Any, path: KeyPath) -> str:
    if path and path[-1] == "api_key":
        return _PLACEHOLDER_SECRET
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _describe(
    details: Any, path: KeyPath, model: type[BaseModel], other_jobs: Mapping[str, type[BaseModel]], data: Any
) -> tuple[str, str]:
    kind: str = details["type"]
    context: dict[str, Any] = details.get("ctx") or {}
    value = details.get("input")
    shown = _show(value, path)
    key = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        return _unknown_key(path, model, other_jobs)
    if kind == "missing":
        return "this key is missing", _missing_mend(path, model)
    if kind == "alternatives":
        return f"{context['expected']} is needed here, not {shown}", ""
    if kind in {"literal_error", "enum"}:
        allowed = str(context.get("expected", "")).replace("'", '"')
        guess = (
            closest(value, [part.strip(' "') for part in allowed.replace(" or ", ", ").split(",")])
            if isinstance(value, str)
            else None
        )
        return (
            f"{shown} is not one of {allowed}",
            f'did you mean "{guess}"?' if guess else f"use one of {allowed}",
        )
    if kind in {"model_type", "dict_type", "model_attributes_type", "mapping_type"}:
        return f"a section {{ … }} is needed here, not {shown}", f"write {{ }} with the keys of `{key}`"
    if kind.startswith("value_error"):
        message = str(context.get("error", details["msg"]))
        return f"{shown}: {message}" if isinstance(value, str | int | float) else message, ""
    if kind in {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}:
        limit = next(iter(context.values()))
        words = {
            "greater_than": "more than",
            "greater_than_equal": "at least",
            "less_than": "less than",
            "less_than_equal": "at most",
        }
        return f"{shown} is out of range", f"it must be {words[kind]} {limit}"
    if kind in {"int_type", "int_parsing", "int_from_float"}:
        return f"a whole number is needed here, not {shown}", "e.g. 8"
    if kind in {"float_type", "float_parsing"}:
        return f"a number is needed here, not {shown}", "e.g. 2e-5"
    if kind == "finite_number":
        return f"{shown} is not a finite number", "give a number such as 0.5"
    if kind in {"bool_type", "bool_parsing"}:
        return f"true or false is needed here, not {shown}", "write true or false, without quotes"
    if kind in {"string_type", "secret_type"}:
        return f"text is needed here, not {shown}", 'put it in double quotes: "…"'
    if kind in {"string_too_short", "string_pattern_mismatch"}:
        return "the text is empty", "give a value, or remove the key"
    if kind == "list_type":
        return f"a list is needed here, not {shown}", "write [ … ]"
    return f"{details['msg']} (found {shown})", ""


def _missing_mend(path: KeyPath, model: type[BaseModel]) -> str:
    field = _field(model, path)
    description = (field.description or "").split("\n")[0] if field is not None else ""
    return f"add it: {description}" if description else "add it"


def _unknown_key(path: KeyPath, model: type[BaseModel], other_jobs: Mapping[str, type[BaseModel]]) -> tuple[str, str]:
    key = str(path[-1])
    problem = f"there is no key {key!r} here"
    here = _keys(model, path[:-1])
    guess = closest(key, here)
    if guess and key.lower() == guess.lower():
        return problem, f"did you mean {guess!r}?"
    for section in _places(model, key):
        if section != path[:-1]:
            place = f"in `{'.'.join(map(str, section))}`" if section else "at the top level"
            return problem, f"this key belongs {place}"
    if guess:
        return problem, f"did you mean {guess!r}?"
    for job, other in sorted(other_jobs.items()):
        for section in _places(other, key):
            place = ".".join((*map(str, section), key))
            return problem, f"`{place}` is a key of {job} jobs and has no effect here; remove it"
    every = {name: section for section in _sections(model) for name in _keys(model, section)}
    far = closest(key, every)
    if far:
        place = ".".join((*map(str, every[far]), far))
        return problem, f"did you mean `{place}`?"
    return problem, f"remove it; the keys here are {', '.join(sorted(here))}"


# --- looking around in config classes ---------------------------------------------------------------------


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes inside a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    origin = typing.get_origin(annotation)
    if origin in {typing.Annotated, typing.Union, types.UnionType}:
        for argument in typing.get_args(annotation):
            yield from models_in(argument)


def _members(models: list[type[BaseModel]]) -> dict[str, Any]:
    return {info.alias or name: info for cls in models for name, info in cls.model_fields.items()}


def _resolve(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    current = [model]
    for part in path:
        info = _members(current).get(str(part))
        current = list(models_in(info.annotation)) if info is not None else []
    return current


def _field(model: type[BaseModel], path: KeyPath) -> Any:
    return _members(_resolve(model, path[:-1])).get(str(path[-1])) if path else None


def _keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    return [name for name in _members(_resolve(model, path)) if not name.startswith("$")]


def _sections(model: type[BaseModel], path: KeyPath = ()) -> Iterator[KeyPath]:
    yield path
    for name, info in _members(_resolve(model, path)).items():
        if any(True for _ in models_in(info.annotation)):
            yield from _sections(model, (*path, name))


def _places(model: type[BaseModel], key: str) -> Iterator[KeyPath]:
    return (section for section in _sections(model) if key in _keys(model, section))
