"""From `--grid training.learning_rate=1e-5,3e-5` to variants of a config, each with a name that can be read."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.config.identity import SECRET_KEYS
from easydistill.data.files import read_json
from easydistill.data.records import content_hash
from easydistill.errors import ConfigError, ConfigIssue

GRID, LIST = "--grid", "--list"
_OWN = ("output_dir", "training.output_dir", "answers_cache", "storage", "job_type", "$schema")
"""Keys that a sweep sets itself, or that no two runs of one sweep can differ in."""
_LONGEST_NAME = 120
"""Bytes: file systems take 255, of which a letter of some scripts is three or four."""
_LONGEST_VALUE = 40
_OPENS, _CLOSES = "[{", "]}"


@dataclass(frozen=True)
class Variant:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    values: tuple[tuple[str, str], ...]
    """(dotted path, value as JSON or plain text) of what it has of its own."""

    @property
    def overrides(self) -> tuple[str, ...]:
        return tuple(f"{path}={text}" for path, text in self.values)


def variants_of(
    grid: Sequence[str],
    listed: Sequence[Mapping[str, Any]] = (),
    *,
    most: int | None = None,
    seed: int = 0,
) -> list[Variant]:
    """The variants: every combination of the grid's values, with each entry of the list if there is one.

    Args:
        grid: `path=value,value,…`, one for each path.
        listed: path → value.
        most: take this many of them, at random.
        seed: of that choice.

    Raises:
        ConfigError: with every issue.
    """
    issues: list[ConfigIssue] = []
    axes = [axis for text in grid if (axis := _axis(text, issues)) is not None]
    entries = [_entry(entry) for entry in listed] or [()]
    paths = [path for path, _ in axes]
    hint_of_secrets = 'write "${env:NAME}" in the config'
    issues += [_issue(GRID, path, "the key is there twice", "list all its values once") for path in _repeated(paths)]
    for path in dict.fromkeys([*paths, *(path for entry in entries for path, _ in entry)]):
        if path in _OWN or path.startswith("storage."):
            issues.append(_issue(GRID, path, "a sweep sets this itself, or cannot vary it", "remove it"))
        if path.rpartition(".")[2] in SECRET_KEYS:
            issues.append(_issue(GRID, path, "a secret would be in the names of folders", hint_of_secrets))
    values = [*axes, *((path, [text]) for entry in entries for path, text in entry)]
    for path in dict.fromkeys(path for path, texts in values if any(map(_has_secret, texts))):
        issues.append(_issue(GRID, path, "a secret inside it would be in the names of folders", hint_of_secrets))
    for path in sorted({path for entry in entries for path, _ in entry} & set(paths)):
        issues.append(_issue(LIST, path, "the grid has this key too", "keep one of them"))
    issues += _nested([*dict.fromkeys([*paths, *(path for entry in entries for path, _ in entry)])])
    if not grid and not listed:
        issues.append(_issue(GRID, "", "nothing varies", "e.g. --grid training.learning_rate=1e-5,3e-5"))
    if issues:
        raise ConfigError(issues)
    products = itertools.product(*([(path, value) for value in values] for path, values in axes))
    found = [(*entry, *values) for values in products for entry in entries]
    if most is not None and most < len(found):
        # In the grid's order, so that more of them extend a sweep at its end or in between, and move none.
        found = [found[at] for at in sorted(random.Random(seed).sample(range(len(found)), most))]
    if twice := _repeated(found):
        problem = f"the same variant is there twice: {', '.join(f'{path}={text}' for path, text in twice[0])}"
        raise ConfigError(_issue(LIST if listed else GRID, "", problem, "remove one of them"))
    return [Variant(name, values) for name, values in zip(_names(found), found, strict=True)]


def read_list(path: Path) -> list[Mapping[str, Any]]:
    """The entries of a JSON file: a list of objects, path → value.

    Raises:
        ConfigError: it is not that.
    """
    hint = 'write [{"training.learning_rate": 1e-5, "training.seed": 1}, …]'
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(_issue(LIST, "", f"{path}: cannot be read: {error}", hint)) from None
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) and entry for entry in found):
        raise ConfigError(_issue(LIST, "", f"{path}: not a list of objects", hint))
    return found


def _issue(where: str, path: str, problem: str, hint: str) -> ConfigIssue:
    return ConfigIssue(where, path, problem, hint)


def _axis(text: str, issues: list[ConfigIssue]) -> tuple[str, list[str]] | None:
    path, equals, rest = text.partition("=")
    values = _split(rest)
    if not equals or not path.strip() or not all(values):
        hint = "e.g. --grid training.learning_rate=1e-5,3e-5"
        issues.append(_issue(GRID, "", f"{json.dumps(text)} is not of the form path=value,value", hint))
        return None
    if not _closed(rest):
        hint = "close it; a text with brackets or quotes is written as JSON"
        issues.append(_issue(GRID, path.strip(), f"a bracket or quote in {json.dumps(rest)} has no other end", hint))
        return None
    issues += [_issue(GRID, path.strip(), f"{value} is there twice", "remove one") for value in _repeated(values)]
    return path.strip(), values


def _nested(paths: Sequence[str]) -> list[ConfigIssue]:
    """Keys inside of one another: what is set later would replace what was set before."""
    pairs = ((outer, inner) for outer in paths for inner in paths if inner.startswith(f"{outer}."))
    hint = "keep one of them, or list the variants one by one (--list)"
    return [_issue(GRID, inner, f"it is a part of {outer}, which varies too", hint) for outer, inner in pairs]


def _has_secret(text: str) -> bool:
    """Whether a value is a section with a secret in it, written out."""
    try:
        waiting: list[Any] = [json.loads(text)]
    except ValueError:
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                if key in SECRET_KEYS and isinstance(item, str) and not item.startswith("${env:"):
                    return True
                waiting.append(item)
    return False


def _closed(text: str) -> bool:
    """Whether brackets and quotes have both ends, without which commas would separate what they should not."""
    quoted, depth, skips = False, 0, False
    for letter in text:
        if skips or (quoted and letter == "\\"):
            skips = not skips
        elif letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in _OPENS) - (letter in _CLOSES)
            if depth < 0:
                return False
    return not quoted and depth == 0


def _split(text: str) -> list[str]:
    """Values between commas; those inside brackets or quotes separate nothing."""
    values, depth, quoted, start, at = [], 0, False, 0, 0
    while at < len(text):
        letter = text[at]
        if quoted and letter == "\\":
            at += 1
        elif letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in _OPENS) - (letter in _CLOSES)
            if letter == "," and depth == 0:
                values.append(text[start:at].strip())
                start = at + 1
        at += 1
    return [*values, text[start:].strip()]


def _entry(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(path), json.dumps(value, ensure_ascii=False)) for path, value in entry.items())


def _repeated(items: Sequence[Any]) -> list[Any]:
    return [item for item, count in Counter(items).items() if count > 1]


def _names(found: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """A folder's name for each variant: `learning_rate=1e-5,seed=1`, unlike all others."""
    short = _short({path for values in found for path, _ in values})
    names = [",".join(f"{short[path]}={_slug(text)}" for path, text in values) for values in found]
    unclear = {name for name in names if names.count(name) > 1 or len(name.encode()) > _LONGEST_NAME}
    return [
        f"{_start(name)}-{content_hash(list(map(list, values)))[:8]}" if name in unclear else name
        for name, values in zip(names, found, strict=True)
    ]


def _start(name: str) -> str:
    """As many whole letters as may be in a name."""
    return name.encode()[:_LONGEST_NAME].decode(errors="ignore")


def _short(paths: set[str]) -> dict[str, str]:
    """The last parts of each path, as few as tell it from the others."""
    found = {}
    for path in paths:
        parts = path.split(".")
        found[path] = path
        for count in range(1, len(parts)):
            end = ".".join(parts[-count:])
            if not any(other != path and f".{other}".endswith(f".{end}") for other in paths):
                found[path] = end
                break
    return found


def _slug(text: str) -> str:
    """A value as part of a folder's name."""
    sign = "-" * text.startswith("-")
    return sign + re.sub(r"[^\w.+-]+", "-", text).strip("-")[:_LONGEST_VALUE] or "empty"
