"""What a section contributes to fingerprints and request keys, so that a new option leaves existing ones as they are.

Identities used to hold every field. A field that was added would then have changed all of them: answers asked and paid
for again, finished stages run again, checkpoints not found. Now a field is left out while it has its default, and it is
part of the identity once it has another value.

The fields of that earlier time have to stay. `recorded_identities.json` lists them for each class, with the defaults
they had. The file is never generated again:

- a recorded field is always part of the identity, with its present value, so a changed default shows by itself
  (`Section.recorded_for_none` names values for which None stands);
- a recorded field that its class has lost, or that no longer changes what a stage produces, contributes its recorded
  default: the default is what every run had in which the field did nothing;
- every other field is left out at its default.

A subclass without a record of its own has its nearest ancestor's. Where a field that is left out gets another default,
or the same values come to mean something else, raise the class's `identity_version`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from easydistill.plain_files import short_names

SECRET_KEYS = frozenset({"api_key"})
"""Names of all keys whose values are `Secret`s (a test compares this with the classes)."""
RECORDS = Path(__file__).with_name("recorded_identities.json")
_VERSION = "identity_version"


@dataclass(frozen=True)
class Record:
    """The fields that a class had when identities held all of them."""

    defaults: Mapping[str, Any]
    """As JSON, by field."""
    required: frozenset[str] = frozenset()
    """Fields without a default."""
    left_out: frozenset[str] = frozenset()
    """Those that were no part of the section's own identity, only of that of a section around it."""

    def fields(self, nested: bool) -> frozenset[str]:
        """The fields that are part of every identity."""
        every = self.required | frozenset(self.defaults)
        return every if nested else every - self.left_out


_NOTHING = Record({})


@cache
def records() -> dict[str, Record]:
    """All records, by the name of their class."""
    found = json.loads(RECORDS.read_text(encoding="utf-8"))
    return {
        name: Record(entry["defaults"], frozenset(entry["required"]), frozenset(entry["left_out"]))
        for name, entry in found.items()
    }


def recorded_name(cls: type) -> str | None:
    """The name under which a class is recorded, if it is one of ours: stated, or that of the class.

    A class that is renamed, or split so that each part serves some of its users, states the name of the old one.
    """
    stated = vars(cls).get("identity_name")
    if stated is not None:
        return str(stated)
    # A third party's class is not recorded, even where it has the name of one that is.
    ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if ours else None


@cache
def record_of(cls: type) -> Record:
    """The record of a class, or of its nearest ancestor that has one."""
    known = records()
    names = (recorded_name(base) for base in cls.__mro__)
    return next((known[name] for name in names if name in known), _NOTHING)


def identity_of(section: BaseModel) -> dict[str, Any]:
    """The values that can change what a stage produces, as JSON types."""
    return _identity(section, section.model_dump(mode="json"), nested=False)


def _identity(section: BaseModel, dumped: dict[str, Any], *, nested: bool) -> dict[str, Any]:
    cls = type(section)
    record = record_of(cls)
    always = record.fields(nested)
    hidden: frozenset[str] = getattr(cls, "runtime_only", frozenset()) | SECRET_KEYS
    if nested:
        hidden -= always
    found: dict[str, Any] = {}
    for name, value in dumped.items():
        if name in hidden:
            continue
        kept = _inner(getattr(section, name), value)
        if kept is None:
            kept = getattr(cls, "recorded_for_none", {}).get(name)
        if name in always or not _is_default(section, name, kept):
            found[name] = kept
    # Not `dumped`: a section may be dumped as the class that its field names, and be one that has more fields.
    present = cls.model_fields.keys() - hidden
    found |= {name: default for name, default in record.defaults.items() if name in always and name not in present}
    found = {key: found[name] for name, key in short_names(list(found)).items()}
    if (file := getattr(cls, "plain_file", None)) is not None:
        # Where the file is makes no difference, what it says does.
        found = {name: file.short if value == file.reference else value for name, value in found.items()}
        found["file"] = f"{file.short} {file.digest}"
    version = getattr(cls, _VERSION, 1)
    return found | ({_VERSION: version} if version > 1 else {})


def _inner(value: Any, dumped: Any) -> Any:
    """A field's dumped value, with the identities of the sections inside it."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        return _identity(value, dumped, nested=True)
    if isinstance(value, Mapping) and isinstance(dumped, dict) and len(value) == len(dumped):
        return {key: _inner(item, dumped[key]) for item, key in zip(value.values(), dumped, strict=True)}
    if isinstance(value, list | tuple) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_inner(item, shown) for item, shown in zip(value, dumped, strict=True)]
    return dumped


def _is_default(section: BaseModel, name: str, kept: Any) -> bool:
    """Whether a field has its default, given its part of the identity."""
    field = type(section).model_fields[name]
    if field.is_required():
        return False
    # What a factory is given: the fields above.
    above = dict(takewhile(lambda item: item[0] != name, section))
    default = field.get_default(call_default_factory=True, validated_data=above)
    # Defaults are not validated, so they may be of another type than the field's values, which serialisers warn of.
    dumped = section.model_copy(update={name: default}).model_dump(mode="json", include={name}, warnings=False)
    return same(kept, _inner(default, dumped[name]))


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
