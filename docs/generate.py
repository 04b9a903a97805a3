"""Writes docs/configuration.md from the config classes: `python docs/generate.py`. With `--check` it only compares.

A section that several jobs have is described once, a section of one job at that job. A section that resembles one
described before it lists only what differs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill import api
from easydistill.config.extensions import OF_FILE

TARGET = Path(__file__).with_name("configuration.md")
HEAD = """\
# Every key of a config

Generated from the config classes by `python docs/generate.py`. Find your job under [Jobs](#jobs); each of its keys
that is a section links to the section's own keys. Only keys marked **required** must be set.
"""
EVERY_JOB = "Keys of every job"
ALIKE = 4
"""A section refers to another one if at least this many keys are equal, and at least half of its own."""
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
SPELLING = {"api": "API", "lora": "LoRA", "grpo": "GRPO", "ppo": "PPO", "cogpo": "CoGPO", "k": "k", "p": "p"}

Schema = dict[str, Any]


@dataclass
class Section:
    """A config class."""

    name: str
    schema: Schema
    jobs: list[str] = field(default_factory=list)
    """The jobs that have it, directly or inside another section."""
    title: str = ""

    @property
    def keys(self) -> dict[str, Schema]:
        return dict(self.schema["properties"])

    @property
    def link(self) -> str:
        return self.link_as(self.title)

    def link_as(self, text: str) -> str:
        anchor = re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")
        return f"[{text}](#{anchor})"

    def required(self, key: str) -> bool:
        return key in self.schema.get("required", [])


def sections_of(schema: Schema) -> tuple[list[Section], dict[str, Section]]:
    """The jobs, and every other config class by its name, which is unique where the contents differ."""
    jobs = [Section(name, schema["$defs"][name], [name], name) for name in map(_target, schema["oneOf"])]
    found: dict[str, Section] = {}
    names = {job.name for job in jobs}
    shared = _renamed(schema["$defs"], names)
    for full, definition in schema["$defs"].items():
        if full in names:
            continue
        name = shared[full]
        section = found.setdefault(name, Section(name, _with_references(definition, shared)))
        section.jobs.append(full.partition(".")[0])
        section.title = _title(name)
    for job in jobs:
        job.schema = _with_references(job.schema, shared)
    return jobs, found


def _renamed(definitions: Schema, jobs: set[str]) -> dict[str, str]:
    """Name within a job → name of the section: the class's, or the job's own where classes of one name differ."""
    contents: dict[str, set[str]] = {}
    for full, definition in definitions.items():
        name = full.partition(".")[2]
        contents.setdefault(name, set()).add(json.dumps(_inlined(definition, definitions), sort_keys=True))
    parts = {full: full.partition(".") for full in definitions if full not in jobs}
    return {full: name if len(contents[name]) == 1 else f"{job}.{name}" for full, (job, _, name) in parts.items()}


def _inlined(schema: Any, definitions: Schema) -> Any:
    """A schema with its sections in place of the references to them."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[_target(schema)], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    return [_inlined(item, definitions) for item in schema] if isinstance(schema, list) else schema


def _with_references(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if reference is not None:
            return schema | {"$ref": names[_target(schema)]}
        return {key: _with_references(value, names) for key, value in schema.items()}
    return [_with_references(item, names) for item in schema] if isinstance(schema, list) else schema


def _target(reference: Schema) -> str:
    return str(reference["$ref"]).rsplit("/", 1)[-1]


def _title(name: str) -> str:
    """`PairTrainingConfig` → `Pair training`; `easydistill__losses__jsd__Config` → `jsd`; `cogpo.Config` → `cogpo`."""
    if "__" in name:
        return name.split("__")[-2]
    job, _, name = name.rpartition(".")
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+|\d+", re.sub("(Config|Section)$", "", name))
    text = " ".join(SPELLING.get(word.lower(), word if at == 0 else word.lower()) for at, word in enumerate(words))
    return ": ".join(part for part in (job, text) if part)


class Page:
    """The page, from the schema of all jobs."""

    def __init__(self, schema: Schema) -> None:
        self.jobs, self.sections = sections_of(schema)
        self.described: list[Section] = []
        self.every = self._of_every_job()
        self._name_apart()

    def _of_every_job(self) -> dict[str, Schema]:
        kind = {"type": "string", "description": "The job: one of those below."}
        first, *others = (job.keys for job in self.jobs)
        common = {key: value for key, value in first.items() if all(job.get(key) == value for job in others)}
        return {"job_type": kind, **common}

    def _name_apart(self) -> None:
        """A title that is taken already is followed by its key or by the folder of its module: `judge (rewards)`."""
        for job in self.jobs:
            for key, value in job.keys.items():
                for option in (value, *_options(value)):
                    section = self.sections.get(option.get("$ref", ""))
                    if section is not None and section.title.lower() == job.name:
                        section.title = f"{job.name}: {key}"
        taken = [section.title.lower() for section in (*self.jobs, *self.sections.values())]
        for section in self.sections.values():
            if taken.count(section.title.lower()) > 1 and "__" in section.name:
                section.title = f"{section.title} ({section.name.split('__')[-3]})"
            elif taken.count(section.title.lower()) > 1 and len(section.jobs) == 1:
                section.title = f"{section.jobs[0]}: {section.title.lower()}"

    def text(self) -> str:
        shared = [section for section in self.sections.values() if len(section.jobs) > 1]
        own = [section for section in self.sections.values() if len(section.jobs) == 1]
        shared.sort(key=lambda section: (-len(section.jobs), section.title))
        described = {section.title: list(self.section(section, "###")) for section in shared}
        shared.sort(key=lambda section: section.title.lower())
        every = Section("", {"properties": self.every, "required": ["job_type"]})
        lines = [HEAD, f"Jobs: {_list(job.link for job in self.jobs)}.", ""]
        lines += [f"Sections of several jobs: {_list(section.link for section in shared)}.", "", "## Jobs", ""]
        lines += [f"### {EVERY_JOB}", "", *self.table(every, self.every)]
        for job in self.jobs:
            lines += self.job(job, [section for section in own if section.jobs == [job.name]])
        sections = [line for section in shared for line in described[section.title]]
        return "\n".join([*lines, "", "## Sections of several jobs", *sections]) + "\n"

    def job(self, job: Section, own: list[Section]) -> Iterator[str]:
        """A job, followed by the sections that only it has."""
        yield from self._opening(job, "###")
        yield from self.table(job, [key for key in job.keys if key not in self.every])
        for section in own:
            yield from self.section(section, "####")

    def section(self, section: Section, level: str) -> Iterator[str]:
        yield from self._opening(section, level)
        if len(section.jobs) > 1:
            yield from (f"In {_list(f'`{job}`' for job in section.jobs)}.", "")
        like = self._most_alike(section)
        keys = list(section.keys)
        if like is not None:
            keys = [key for key in keys if not _equal(section, like, key)]
            without = [f"`{key}`" for key in like.keys if key not in section.keys]
            less = f", without {_list(without)}" if without else ""
            yield from (f"The keys of {like.link}{less}{'; different or added:' if keys else '.'}", "")
        yield from self.table(section, keys)
        self.described.append(section)

    def _opening(self, section: Section, level: str) -> Iterator[str]:
        yield from ("", f"{level} {section.title}", "")
        text = _flat(section.schema.get("description"))
        if text:
            yield from (text, "")

    def _most_alike(self, section: Section) -> Section | None:
        def equal(other: Section) -> int:
            return sum(_equal(section, other, key) for key in section.keys)

        like = max(self.described, key=equal, default=None)
        found = 0 if like is None else equal(like)
        return like if found >= ALIKE and 2 * found >= len(section.keys) else None

    def table(self, section: Section, keys: Iterable[str]) -> Iterator[str]:
        rows = [(key, section.keys[key]) for key in keys]
        if not rows:
            return
        yield from ("| key | type | default | meaning |", "|---|---|---|---|")
        for key, value in rows:
            default = "**required**" if section.required(key) else self.default(value)
            cells = (f"`{key}`", self.type(value), default, _flat(value.get("description")))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    def type(self, schema: Schema) -> str:
        """A type in words, with links to sections; a union names the key whose value selects the section."""
        if "$ref" in schema:
            return self.sections[schema["$ref"]].link
        if "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            return _list(f"`{json.dumps(value)}`" for value in values)
        options = [option for option in _options(schema) if option.get("type") != "null"]
        if options:
            tag = self._tag(options)
            if not tag:
                return " or ".join(map(self.type, options))
            members = [self.sections[option["$ref"]] for option in options]
            return f"by `{tag}`: {_list(it.link_as('`' + it.keys[tag]['const'] + '`') for it in members)}"
        if schema.get("type") == "array":
            items = self.type(schema.get("items", {}))
            return f"list of {items}" if items != "anything" else "list"
        bounds = [f"{sign} {schema[name]:g}" for name, sign in LIMITS.items() if name in schema]
        return " ".join([str(schema.get("type", "anything")), *bounds])

    def _tag(self, options: list[Schema]) -> str:
        """The key whose one value differs in each member of a union."""
        if len(options) < 2 or not all("$ref" in option for option in options):
            return ""
        members = [self.sections[option["$ref"]].keys for option in options]
        values = {key: [member.get(key, {}).get("const") for member in members] for key in members[0]}
        return next((key for key, found in values.items() if None not in found and len({*found}) == len(found)), "")

    def default(self, schema: Schema) -> str:
        value = schema.get("default")
        if value is None:
            return "–"
        references = [option["$ref"] for option in (schema, *_options(schema)) if "$ref" in option]
        if not isinstance(value, dict) or not references:
            return f"`{json.dumps(value, ensure_ascii=False)}`"
        known = [self.sections[reference].keys for reference in references]
        other = {
            key: given
            for key, given in value.items()
            if not any(key in keys and keys[key].get("default", keys[key].get("const")) == given for keys in known)
        }
        return f"`{json.dumps(other, ensure_ascii=False)}`" if other else "its defaults"


def _options(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf") or schema.get("oneOf") or ())


def _equal(section: Section, other: Section, key: str) -> bool:
    return section.keys[key] == other.keys.get(key) and section.required(key) == other.required(key)


def _list(items: Iterable[str]) -> str:
    return ", ".join(items)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _without_files(value: Any) -> Any:
    """A schema without the sections of users' files, which are no type of their own."""
    if isinstance(value, list):
        return [_without_files(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _without_files(item) for name, item in value.items()}
    options = found.get("anyOf", [])
    kept = [option for option in options if option.get("title") != OF_FILE]
    if len(kept) == 1 < len(options):
        del found["anyOf"]
        return {**kept[0], **found}
    return {**found, "anyOf": kept} if options else found


def text() -> str:
    """The whole page."""
    return Page(_without_files(api.job_schema())).text()


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        TARGET.write_text(text(), encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text():
        sys.exit(f"{TARGET.name} is not what the config classes say now: run python docs/generate.py")
