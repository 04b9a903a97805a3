"""Pydantic's errors → issues that users can fix: line, path, value, allowed values, probable intent."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

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

_WRONG_TYPE = {
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type", "mapping_type"), "a section { … }"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "text"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list [ … ]"),
}
_EMPTY = "give a value, or remove the key"
_OUT_OF_RANGE = "{shown} is out of range"
_FIXED = {
    "greater_than": (_OUT_OF_RANGE, "it must be more than {limit}"),
    "greater_than_equal": (_OUT_OF_RANGE, "it must be at least {limit}"),
    "less_than": (_OUT_OF_RANGE, "it must be less than {limit}"),
    "less_than_equal": (_OUT_OF_RANGE, "it must be at most {limit}"),
    "finite_number": ("{shown} is not a finite number", "give a number such as 0.5"),
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
    errors = _Errors(document, model, other_jobs)
    found = [(errors.at_tag(locate(details["loc"], model), details), details) for details in error.errors()]
    grouped: dict[KeyPath, list[tuple[Place, Any]]] = {}
    for place, details in found:
        grouped.setdefault(place.path, []).append((place, details))
    # A union reports the errors of each member; a member with errors inside the value is the one that was meant.
    entered = {place.union for place, _ in found if place.union is not None and place.path != place.union}
    for path, group in grouped.items():
        if path not in entered:
            issues.add(document, *errors.describe(group), path)


_KEY = "[key]"
"""Where pydantic finds a mistake in the key of a mapping, and not in its value."""


@dataclass(frozen=True)
class _Errors:
    """Finds words for the errors of a config; the fields are arguments of `explain`."""

    document: Node
    model: type[BaseModel]
    other_jobs: Mapping[str, type[BaseModel]]

    def at_tag(self, place: Place, details: Any) -> Place:
        """The key that names an unknown member of a union; pydantic reports the section that holds it. Of a key that is
        wrong itself, pydantic reports a part of it."""
        if place.path[-1:] == (_KEY,):
            return replace(place, path=place.path[:-1])
        if details["type"] != "union_tag_invalid":
            return place
        section, tag = self.document.at(place.path), details["ctx"]["tag"]
        items = section.items() if isinstance(section, dict) else ()
        key = next((name for name, value in items if str(value) == tag), None)
        return place if key is None else replace(place, path=(*place.path, key))

    def describe(self, group: list[tuple[Place, Any]]) -> tuple[str, str]:
        """Problem and hint for everything that pydantic reports about one place."""
        place, details = group[0]
        kind, context = details["type"], details.get("ctx") or {}
        value = self.document.at(place.path) if details["loc"][-1:] != (_KEY,) else place.path[-1]
        shown = show(value, place.path)
        if kind == "string_pattern_mismatch" and details["loc"][-1:] == (_KEY,):
            return f"{shown} cannot be a name here", "begin with a letter or digit; use letters, digits, _ and -"
        if kind == "string_pattern_mismatch" and str(value).strip():
            return f"{shown} does not have the form that is needed here", _description(place)
        if _is_of_no_type(group):
            return _not_any(place, value, shown)
        if kind == "extra_forbidden":
            return f"there is no key {str(place.path[-1])!r} here", next(self._hints(place))
        if kind == "missing":
            return "this key is missing", f"add it: {_description(place)}"
        if kind in _WRONG_TYPE:
            return f"{_WRONG_TYPE[kind]} is needed here, not {shown}", _instead(_WRONG_TYPE[kind], place, value)
        if kind == "literal_error" and (words := re.findall(r"'([^']*)'", str(context["expected"]))):
            return _unknown_word(shown, words, value)
        if kind == "union_tag_invalid":
            return _unknown_kind(place.path, re.findall(r"'([^']*)'", str(context["expected_tags"])), value)
        if kind in _FIXED:
            said, hint = _FIXED[kind]
            return said.format(shown=shown), hint.format(limit=next(iter(context.values()), None))
        problem = context.get("error")
        if isinstance(problem, Unfit):
            return problem.problem, problem.hint
        return str(problem) if problem is not None else f"{details['msg']} (found {shown})", ""

    def _hints(self, place: Place) -> Iterator[str]:
        """What to do about a key that is not known where it stands; the most certain hint comes first."""
        above, key = tuple(place.path[:-1]), str(place.path[-1])
        here = [name for name in keys_of(list(place.siblings)) if not name.startswith("$")]
        every = _sections_near(self.model, above)
        if key in every.get(above, {}):
            yield self._of_another_kind(key, place) or _excluded(key, here, self.document.at(above) or {})
        guess = closest(key, here)
        if guess and key.lower() == guess.lower():
            yield f"did you mean {guess!r}?"
        yield from _elsewhere(key, every)
        if guess:
            yield f"did you mean {guess!r}?"
        yield from self._in_other_jobs(place.path)
        names = {name: section for section, keys in every.items() for name in keys}
        if far := closest(key, names):
            yield f"did you mean `{dotted((*names[far], far))}`?"
        yield f"remove it; the keys here are {', '.join(sorted(here))}" if here else "remove it; there are no keys here"

    def _of_another_kind(self, key: str, place: Place) -> str | None:
        """What to do about a key that the section would have if it named another kind, such as another backend."""
        above = tuple(place.path[:-1])
        written = self.document.at(above)
        field = locate(above, self.model).field
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

    def _in_other_jobs(self, path: KeyPath) -> Iterator[str]:
        """The hint where a key belongs to jobs of other types; the type that was probably meant comes first."""
        *above, last = path
        found: dict[str, KeyPath] = {}
        for job, other in self.other_jobs.items():
            places = [section for section, names in _sections_near(other, path).items() if last in names]
            if places:
                # The very key says more than one of the same name in another section.
                found[job] = min(places, key=lambda section: section != tuple(above))
        if not found:
            return
        exact = [job for job, section in found.items() if section == tuple(above)]
        likely = self._likely_first(exact or found)
        *before, end = likely[:_JOBS_SHOWN]
        shown = f"{', '.join(before)} and {end}" if before else end
        of = f"{shown} jobs" if len(likely) <= _JOBS_SHOWN else f"{len(likely)} job types, such as {shown},"
        key = dotted((*found[likely[0]], last))
        yield f"`{key}` is a key of {of} and has no effect here; remove it, or change job_type"

    def _likely_first(self, jobs: Iterable[str]) -> list[str]:
        """Job types, the one that was probably meant first."""
        written = [str(key) for key in self.document.at(()) or {}]
        job_type = self.model.model_fields.get("job_type")
        own = "" if job_type is None else "".join(literals(job_type.annotation))

        def unlikely(job: str) -> tuple[int, float, str]:
            """Keys of the config that the job does not have, then how little its name resembles the one written."""
            alien = sum(key not in keys_of([self.other_jobs[job]]) for key in written)
            return alien, -difflib.SequenceMatcher(None, own, job).ratio(), job

        return sorted(jobs, key=unlikely)


def _sections_near(model: type[BaseModel], path: KeyPath) -> dict[KeyPath, dict[str, FieldInfo]]:
    """The sections that a key at `path` may have been meant for. Those of sinks have keys of common names
    (`base_url`, `project`), which nobody looks for elsewhere."""
    return {at: keys for at, keys in sections(model) if at[:1] != ("track",) or path[:1] == ("track",)}


def _is_of_no_type(group: list[tuple[Place, Any]]) -> bool:
    """Whether a value is of none of the types that its field accepts."""
    place, details = group[0]
    if place.field is None:
        return False
    wrong = all(each["type"] in {*_WRONG_TYPE, "literal_error"} for _, each in group)
    return details["type"] == "literal_error" or (wrong and is_union(place.field.annotation))


def _unknown_kind(path: KeyPath, known: list[str], value: Any) -> tuple[str, str]:
    """A `kind`, a `backend` or another tag that no member of the union has."""
    return _unknown_word(f"{path[-1]} {show(value)}", known, value)


def _unknown_word(shown: str, known: list[str], value: Any) -> tuple[str, str]:
    words = [f'"{name}"' for name in known]
    guess = closest(value, known) if isinstance(value, str) else None
    some = f"one of {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    return f"{shown} is not one of {', '.join(words)}", f'did you mean "{guess}"?' if guess else f"use {some}"


def _not_any(place: Place, value: Any, shown: str) -> tuple[str, str]:
    """A value of none of the types that a field accepts."""
    assert place.field is not None
    wanted, words = alternatives(place.field.annotation), literals(place.field.annotation)
    guess = closest(value, words) if isinstance(value, str) else None
    problem = f"{shown} is not {'one of ' if len(words) > 1 else ''}{wanted}"
    if guess:
        return problem, f'did you mean "{guess}"?'
    if words:
        return problem, f"use {wanted}"
    hint = _instead(wanted, place, value) if wanted.startswith("a section") else _first_line(place.field.description)
    return f"{wanted} is needed here, not {shown}", hint


def _instead(wanted: str, place: Place, value: Any) -> str:
    """What to write instead of a value of the wrong type."""
    default = getattr(place.field, "default", None)
    if value is None and place.field is not None and not place.field.is_required():
        return _by_removing(default)
    if wanted in _EXAMPLES:
        number = default if isinstance(default, int | float) else _EXAMPLES[wanted]
        return f"e.g. {round(value) if isinstance(value, float) else number}"
    if wanted == "true or false":
        return "write true or false, without quotes"
    if wanted == "text":
        number = type(value) in (int, float) and not is_secret(place.path)
        return f'put it in double quotes: "{value}"' if number else 'give one text, in double quotes: "…"'
    if wanted.startswith("a section"):
        return f"write {{ }} with the keys of `{place.path[-1]}`: {_description(place)}"
    return f"write {wanted}"


def _by_removing(default: Any) -> str:
    """What to do about a null where the key may be left out."""
    if default is None:
        return "remove the key"
    shown = "" if isinstance(default, BaseModel) else f", {json.dumps(default, default=str)}"
    return f"remove the key to get the default{shown}"


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


def _excluded(key: str, here: list[str], written: Iterable[str]) -> str:
    """A key of another form of the section than the one that is written."""
    other = next((name for name in here if name in written), here[0])
    return f"`{key}` does not go together with `{other}`: keep one of them"


def _elsewhere(key: str, every: Mapping[KeyPath, Collection[str]]) -> Iterator[str]:
    """Where in the config a key belongs, under this name or the one that it has now."""
    for section, keys in every.items():
        if key in keys:
            yield f"this key belongs {f'in `{dotted(section)}`' if section else 'at the top level'}"
    for old, new in KEY_ALIASES.items():
        if key == old[-1] and str(new[-1]) in every.get(new[:-1], {}):
            yield f"write it as `{dotted(new)}`"
