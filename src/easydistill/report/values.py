"""Reads JSON of unknown shape: a value of the wrong type counts as missing; it never becomes a crash or a zero."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from easydistill.data.files import read_json
from easydistill.data.numbers import as_float

T = TypeVar("T")


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_text(value: Any) -> str:
    """A string as it is, "" for null, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_counts(value: Any) -> dict[str, int]:
    """The whole numbers of an object, by name."""
    counts = ((name, as_int(count)) for name, count in as_dict(value).items())
    return {name: count for name, count in counts if count is not None}


def as_texts(value: Any) -> tuple[str, ...]:
    """The texts of a list."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": as_text,
    "int | None": as_int,
    "float | None": as_float,
    "dict[str, int]": as_counts,
    "tuple[str, ...]": as_texts,
    "dict[str, Any]": as_dict,
    "Any": lambda value: value,
}


def record(kind: type[T], value: Any, **known: Any) -> T:
    """A dataclass instance from a JSON object: each field that is not in `known` is read by its name and annotation."""
    found = as_dict(value)
    names = {field.name: str(field.type) for field in fields(kind) if field.name not in known}  # type: ignore[arg-type]
    return kind(**{name: _READERS[annotation](found.get(name)) for name, annotation in names.items()}, **known)


def dig(value: Any, path: str) -> Any:
    """The value at a dotted path, or None."""
    for key in path.split("."):
        value = as_dict(value).get(key)
    return value


def shown(value: Any, limit: int) -> str:
    """A value as text, cut after `limit` characters with a note of how many follow."""
    text = as_text(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file or it cannot be read."""
    try:
        return as_dict(read_json(path))
    except (OSError, ValueError, RecursionError):
        return {}


def json_lines(path: Path, ending: str = "\n") -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, one at a time; other lines, such as one torn by a kill, are skipped.

    Args:
        ending: characters that may follow an object on its line.
    """
    try:
        handle = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with handle:
        for line in handle:
            try:
                value = json.loads(line.rstrip(ending))
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
