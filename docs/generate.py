"""Writes docs/configuration.md from the config classes: `python docs/generate.py`. With `--check` it only compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill import api

TARGET = Path(__file__).with_name("configuration.md")
HEAD = """# Every key of a config

Generated from the config classes by `python docs/generate.py`. Where the same text stands in several jobs, it means
the same.
"""


def describe(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit(".", 1)[-1]
        return f"section {name}" if definitions[schema["$ref"].rsplit("/", 1)[-1]].get("type") == "object" else name
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(describe(option, definitions) for option in options)
    kind = str(schema.get("type", "anything"))
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in limits.items() if name in schema]
    return " ".join([kind, *bounds])


def section(name: str, schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    """A table of a section's keys."""
    yield f"\n### {name}\n"
    text = schema.get("description", "").replace("\n", " ").strip()
    if text:
        yield f"{text}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    required = set(schema.get("required", []))
    for key, value in schema["properties"].items():
        default = "**needed**" if key in required else f"`{json.dumps(value.get('default'))}`"
        if "default" in value and isinstance(value["default"], dict):
            default = "see there"
        meaning = " ".join(str(value.get("description", "")).split())
        cells = [f"`{key}`", describe(value, definitions), default, meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def text() -> str:
    """The whole page."""
    schema = api.job_schema()
    definitions = schema["$defs"]
    jobs = [reference["$ref"].rsplit("/", 1)[-1] for reference in schema["oneOf"]]
    lines = [HEAD]
    for job in jobs:
        lines.append(f"\n## {job}\n")
        lines.extend(section("Top level", definitions[job], definitions))
        for name, inner in definitions.items():
            if name.startswith(f"{job}.") and inner.get("type") == "object":
                lines.extend(section(name.removeprefix(f"{job}."), inner, definitions))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        TARGET.write_text(text(), encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text():
        sys.exit(f"{TARGET.name} is not what the config classes say now: run python docs/generate.py")
