"""Refuses values that JSON does not have, whatever language or program they came from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from easydistill.config.reading.document import Document, KeyPath
from easydistill.errors import ConfigError, ConfigIssue


def from_mapping(source: Mapping[str, Any]) -> Document:
    """A config that a program wrote; paths may be `Path` objects.

    Raises:
        ConfigError: it holds what cannot be written as JSON.
    """
    try:
        return Document("config", json.loads(json.dumps(dict(source), default=os.fspath)))
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"it cannot be written as JSON: {error}"
        raise ConfigError(ConfigIssue("config", "", problem, "use only dict, list, str, numbers, bool, None")) from None


def find_foreign(document: Document, data: Any) -> dict[KeyPath, ConfigIssue]:
    """An issue for each value of `data` that is not plain: dates, bytes, infinities, broken text."""
    issues: dict[KeyPath, ConfigIssue] = {}

    def walk(value: Any, path: KeyPath) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, (*path, index))
        elif problem := _problem(value):
            issues[path] = document.issue(path, *problem)

    walk(data, ())
    return issues


def _problem(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str):
        if "\0" in value:
            return "the text holds a NUL character", "remove it"
        if any("\ud800" <= char <= "\udfff" for char in value):
            return "the text holds half of a surrogate pair", "write the character itself, in UTF-8"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return "this is not a finite number", "give a number such as 0.5"
    elif value is not None and not isinstance(value, int):
        return f"a value of type {type(value).__name__} has no use in a config", "put it in quotes, as text"
    return None
