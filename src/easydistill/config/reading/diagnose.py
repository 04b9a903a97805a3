"""Pydantic's errors → issues that users can fix: line, path, value, allowed values, probable intent."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from easydistill.config.base import Unfit
from easydistill.config.reading.aliases import KEY_ALIASES
from easydistill.config.reading.fields import (
    Place,
    alternatives,
    is_union,
    keys_of,
    literals,
    locate,
    models_in,
    sections,
)
from easydistill.config.reading.nodes import Issues, Node
from easydistill.config.values import KeyPath, dotted, is_secret, show

_LIMITS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_WRONG_TYPE = {
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type", "mapping_type"), "a section { … }"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "text"),
    "list_type": "a list [ … ]",
}
_EMPTY = "give a value, or remove the key"
_FIXED = {
    "finite_number": ("{} is not a finite number", "give a number such as 0.5"),
    **dict.fromkeys(("string_too_short", "string_pattern_mismatch"), ("the text is empty", _EMPTY)),
    "too_short": ("the list is empty", _EMPTY),
}
_JOBS_SHOWN = 3
"""How many job types a hint lists."""
_EXAMPLES = {"a whole number": 8, "a number": 0.5}


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` was probably meant to be."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    squeezed = word[:100].lower().replace("-", "_").replace(" ", "_")
    match = difflib.get_close_matches(squeezed, lowered, n=1, cutoff=0.7)
    return lowered[match[0]] if match else None


def explain(
    error: ValidationError,
    document: Node,
    model: type[BaseModel],
    other_jobs: Mapping[str, type[BaseModel]],
    issues: Issues,
) -> None:
    """Report one issue for each place in the config.

    Args:
        error: what validating against `model` raised.
        document: the config as written, which is what messages quote.
        other_jobs: the other job types, to say where a key that does not apply here belongs.
        issues: where to report.
    """
    found = [(_at_tag(locate(details["loc"], model), details, document), details) for details in error.errors()]
    grouped: dict[KeyPath, list[tuple[Place, Any]]] = {}
    for place, details in found:
        grouped.setdefault(place.path, []).append((place, details))
    # A union reports the errors of each member; a member with errors inside the value is the one that was meant.
    entered = {place.union for place, _ in found if place.union is not None and place.path != place.union}
    for path, group in grouped.items():
        if path not in entered:
            issues.add(document, *_describe(group, document, model, other_jobs), path)


def _at_tag(place: Place, details: Any, document: Node) -> Place:
    """The key that names an unknown member of a union; pydantic reports the section that holds it."""
    if details["type"] != "union_tag_invalid":
        return place
    section, tag = document.at(place.path), details["ctx"]["tag"]
    key = next((name for name, value in section.items() if str(value) == tag), None)
    return place if key is None else replace(place, path=(*place.path, key))


def _describe(
    group: list[tuple[Place, Any]], document: Node, model: type[BaseModel], other_jobs: Mapping[str, type[BaseModel]]
) -> tuple[str, str]:
    """Problem and hint for everything that pydantic reports about one place."""
    place, details = group[0]
    kind, context = details["type"], details.get("ctx") or {}
    value = document.at(place.path)
    shown = show(value, place.path)
    of_no_type = all(each["type"] in {*_WRONG_TYPE, "literal_error"} for _, each in group)
    if place.field is not None and ((of_no_type and is_union(place.field.annotation)) or kind == "literal_error"):
        return _not_any(place, place.field, value, shown)
    if kind == "extra_forbidden":
        return _unknown_key(place, document, model, other_jobs)
    if kind == "missing":
        return "this key is missing", f"add it: {_description(place)}"
    if kind in _WRONG_TYPE:
        return f"{_WRONG_TYPE[kind]} is needed here, not {shown}", _instead(_WRONG_TYPE[kind], place, value)
    if kind in _LIMITS:
        return f"{shown} is out of range", f"it must be {_LIMITS[kind]} {next(iter(context.values()))}"
    if kind == "union_tag_invalid":
        return _unknown_kind(place.path, re.findall(r"'([^']*)'", str(context["expected_tags"])), value)
    if kind in _FIXED:
        return _FIXED[kind][0].format(shown), _FIXED[kind][1]
    problem = context.get("error")
    if isinstance(problem, Unfit):
        return problem.problem, problem.mend
    return str(problem) if problem is not None else f"{details['msg']} (found {shown})", ""


def _unknown_kind(path: KeyPath, known: list[str], value: Any) -> tuple[str, str]:
    """A `kind`, a `backend` or another tag that no member of the union has."""
    words = [f'"{name}"' for name in known]
    guess = closest(value, known) if isinstance(value, str) else None
    hint = f'did you mean "{guess}"?' if guess else f"use one of {', '.join(words[:-1])} or {words[-1]}"
    return f"{path[-1]} {show(value)} is not one of {', '.join(words)}", hint


def _not_any(place: Place, field: FieldInfo, value: Any, shown: str) -> tuple[str, str]:
    """A value of none of the types that a field accepts."""
    wanted = alternatives(field.annotation)
    words = literals(field.annotation)
    guess = closest(value, words) if isinstance(value, str) else None
    problem = f"{shown} is not {'one of ' if len(words) > 1 else ''}{wanted}"
    if guess:
        return problem, f'did you mean "{guess}"?'
    if words:
        return problem, f"use {wanted}"
    hint = _instead(wanted, place, value) if wanted.startswith("a section") else _first_line(field.description)
    return f"{wanted} is needed here, not {shown}", hint


def _instead(wanted: str, place: Place, value: Any) -> str:
    """What to write instead of a value of the wrong type."""
    default = place.field.default if place.field is not None else PydanticUndefined
    optional = place.field is not None and not place.field.is_required()
    if value is None and optional:
        shown = "" if isinstance(default, BaseModel) else f", {json.dumps(default, default=str)}"
        return f"remove the key to get the default{shown}" if default is not None else "remove the key"
    if wanted in _EXAMPLES:
        number = default if isinstance(default, int | float) else _EXAMPLES[wanted]
        return f"e.g. {round(value) if isinstance(value, float) else number}"
    if wanted == "true or false":
        return "write true or false, without quotes"
    if wanted == "text":
        number = isinstance(value, int | float) and not isinstance(value, bool) and not is_secret(place.path)
        return f'put it in double quotes: "{value}"' if number else 'give one text, in double quotes: "…"'
    if wanted.startswith("a section"):
        return f"write {{ }} with the keys of `{place.path[-1]}`: {_description(place)}"
    return f"write {wanted}"


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]


def _description(place: Place) -> str:
    """One line on what a key is for; for a section, also which keys it requires."""
    if place.field is None:
        return ""
    text = _first_line(place.field.description)
    section = next(models_in(place.field.annotation), None)
    if text or section is None:
        return text
    needed = [name for name, info in keys_of([section]).items() if info.is_required()]
    return _first_line(section.__doc__) + (f" It needs {', '.join(needed)}." if needed else "")


def _of_another_kind(key: str, place: Place, document: Node, model: type[BaseModel]) -> str | None:
    """What to do about a key that the section would have if it named another kind, such as another backend."""
    above = tuple(place.path[:-1])
    written = document.at(above)
    field = locate(above, model).field
    for name, info in keys_of(list(place.siblings)).items():
        kind = literals(info.annotation)
        if field is None or not isinstance(written, dict) or len(kind) != 1 or written.get(name) != kind[0]:
            continue
        having = [cls.model_fields for cls in models_in(field.annotation) if key in cls.model_fields]
        others = [show(word) for fields in having if name in fields for word in literals(fields[name].annotation)]
        if others:
            of = f"`{key}` is a key of {name} {' or '.join(others)}, not of {show(kind[0])}"
            return f"{of}: remove it, or change {name}"
    return None


def _unknown_key(
    place: Place, document: Node, model: type[BaseModel], other_jobs: Mapping[str, type[BaseModel]]
) -> tuple[str, str]:
    *above, last = place.path
    key = str(last)
    problem = f"there is no key {key!r} here"
    here = [name for name in keys_of(list(place.siblings)) if not name.startswith("$")]
    every = dict(sections(model))
    forms = every.get(tuple(above), {})
    if key in forms:
        stated = _of_another_kind(key, place, document, model)
        if stated:
            return problem, stated
        given = [name for name in here if name in (document.at(tuple(above)) or {})]
        return problem, f"`{key}` does not go together with `{given[0] if given else here[0]}`: keep one of them"
    guess = closest(key, here)
    if guess and key.lower() == guess.lower():
        return problem, f"did you mean {guess!r}?"
    for section, keys in every.items():
        if key in keys:
            return problem, f"this key belongs {f'in `{dotted(section)}`' if section else 'at the top level'}"
    for old, new in KEY_ALIASES.items():
        if key == old[-1] and str(new[-1]) in every.get(new[:-1], {}):
            return problem, f"write it as `{dotted(new)}`"
    if guess:
        return problem, f"did you mean {guess!r}?"
    if hint := _key_of_other_jobs((*above, last), document, model, other_jobs):
        return problem, hint
    names = {name: section for section, keys in every.items() for name in keys}
    far = closest(key, names)
    if far:
        return problem, f"did you mean `{dotted((*names[far], far))}`?"
    return problem, f"remove it; the keys here are {', '.join(sorted(here))}"


def _key_of_other_jobs(
    path: KeyPath, document: Node, model: type[BaseModel], other_jobs: Mapping[str, type[BaseModel]]
) -> str | None:
    """The hint where a key belongs to jobs of other types; the type that was probably meant comes first."""
    *above, last = path
    found: dict[str, KeyPath] = {}
    for job, other in other_jobs.items():
        places = [section for section, names in sections(other) if last in names]
        if places:
            # The very key says more than one of the same name in another section.
            found[job] = min(places, key=lambda section: section != tuple(above))
    exact = [job for job, section in found.items() if section == tuple(above)]
    if not found:
        return None
    written = [str(key) for key in document.at(()) or {}]
    own = "".join(literals(model.model_fields["job_type"].annotation)) if "job_type" in model.model_fields else ""

    def unlikely(job: str) -> tuple[int, float, str]:
        """Keys of the config that the job does not have, then how little its name resembles the one written."""
        alien = sum(key not in keys_of([other_jobs[job]]) for key in written)
        return alien, -difflib.SequenceMatcher(None, own, job).ratio(), job

    likely = sorted(exact or found, key=unlikely)
    *before, end = likely[:_JOBS_SHOWN]
    shown = f"{', '.join(before)} and {end}" if before else end
    of = f"{shown} jobs" if len(likely) <= _JOBS_SHOWN else f"{len(likely)} job types, such as {shown},"
    key = dotted((*found[likely[0]], last))
    return f"`{key}` is a key of {of} and has no effect here; remove it, or change job_type"
