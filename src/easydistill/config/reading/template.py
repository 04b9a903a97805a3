"""`easydistill init`: a starting config whose comments are the config classes' own descriptions."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from easydistill.config.inference import ApiInferenceConfig
from easydistill.config.job import JobConfig
from easydistill.config.reading.fields import models_in

_EXAMPLES: dict[tuple[str, str], Any] = {
    ("dataset", "instruction_path"): "train.json",
    ("dataset", "labeled_path"): "train_labeled.json",
    ("synthesis", "benchmarks"): ["benchmark.jsonl"],
    ("synthesis", "allow_execution"): True,
    ("mix", "inputs"): {"first": {"path": "first.json"}, "second": {"path": "second.jsonl"}},
    ("rewards", "verify"): {},
    ("inference", "base_url"): "http://localhost:8000/v1",
    ("inference", "api_key"): "${env:API_KEY}",
    ("models", "teacher"): "path/or/hub-id/of/teacher",
    ("models", "student"): "path/or/hub-id/of/student",
}
_WHOLE: dict[tuple[str, str], Any] = {
    ("pipeline", "jobs"): {
        "clean": {"job_type": "deduplicate", "dataset": {"instruction_path": "seeds.json"}},
        "sft": {
            "job_type": "black_box_kd_local",
            "dataset": {"instruction_path": "@clean/labeled"},
            "models": {"teacher": "path/or/hub-id/of/teacher", "student": "path/or/hub-id/of/student"},
        },
    },
    ("evaluate", "models"): {
        "teacher": {"model": "path/or/hub-id/of/teacher"},
        "before": {"model": "path/or/hub-id/of/student"},
        "after": {"model": "runs/sft/student"},
    },
    ("export", "formats"): ["safetensors", "gguf:f16", "gguf:q8_0"],
    ("evaluate", "tasks"): [
        {"task": "gsm8k", "data": "gsm8k_test.jsonl"},
        {"task": "humaneval", "data": "humaneval.jsonl", "allow_execution": True},
    ],
}
"""Job and section, where the section's keys are the user's own."""
_LEFT_OUT = {
    "black_box_kd_api": {("models", "teacher")},
    "release": {("dataset", "instruction_path")},
    "sft": {("dataset", "instruction_path"), ("models", "teacher")},
}
"""Keys of a section that a job refuses."""


def starting_config(job: type[JobConfig]) -> str:
    """JSON with comments: values that users must set are written out, defaults are commented out."""
    job_type = job.model_fields["job_type"].annotation.__args__[0]  # type: ignore[union-attr]
    lines = [
        "{",
        "  // For editor completion: easydistill schema > job.schema.json",
        '  "$schema": "job.schema.json",',
        f'  "job_type": {json.dumps(job_type)},',
        "  // Run directory; the trained model is in student/ inside it.",
        f'  "output_dir": {json.dumps(f"runs/{job_type}")},',
    ]
    for name, info in job.model_fields.items():
        section = _shown(name, info)
        if (job_type, name) in _WHOLE:
            shown = json.dumps(_WHOLE[job_type, name], indent=2).replace("\n", "\n  ")
            lines += [_comment(info, 2), f'  "{name}": {shown},']
        elif isinstance(info.default, dict):
            lines += [_comment(info, 2), f'  // "{name}": {json.dumps(info.default)},']
        elif section is not None:
            skip = _LEFT_OUT.get(job_type, set())
            lines += [f'  "{name}": {{', *_section(section, name, skip, _api(section, info)), "  },"]
        elif any(models_in(info.annotation)):
            lines += [_comment(info, 2), f'  // "{name}": null,']
    return "\n".join([*lines, "}"]) + "\n"


def _api(shown: type[BaseModel], info: FieldInfo) -> type[BaseModel] | None:
    """The class of a model behind an API, if a section that shows another one accepts it too."""
    accepted = (member for member in models_in(info.annotation) if issubclass(member, ApiInferenceConfig))
    return None if issubclass(shown, ApiInferenceConfig) else next(accepted, None)


def _comment(info: FieldInfo, indent: int) -> str:
    return f"{' ' * indent}// {' '.join((info.description or '').split())}".rstrip()


def _shown(name: str, info: FieldInfo) -> type[BaseModel] | None:
    """The class whose keys are shown for a section: that of its default, or the first accepted one; None to omit it.

    A section that is absent by default is shown only if users are expected to set something in it.
    """
    first = next(models_in(info.annotation), None)
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return type(default)
    to_set = first is not None and any((name, field) in _EXAMPLES for field in first.model_fields)
    return first if info.is_required() or to_set else None


def _server(section: type[BaseModel] | None) -> list[str]:
    """The keys of a model behind an API, where the section may name one instead of a model on this machine."""
    if section is None:
        return []
    lines = ["    // A model behind an API answers instead, if these are set; models.teacher is then left out."]
    for field in ("base_url", "api_key", "model"):
        info = section.model_fields[field]
        lines.append(_comment(info, 4))
        example = _EXAMPLES.get(("inference", field), "name-of-the-model")
        # Further in than the defaults below, beside which these keys have no place.
        lines.append(f'    //   "{field}": {json.dumps(example)},')
    return [
        *lines,
        "    // Its other keys, such as prices and max_cost, are in docs/teachers.md. Those of this machine:",
    ]


def _section(
    section: type[BaseModel], name: str, skip: set[tuple[str, str]], other: type[BaseModel] | None = None
) -> list[str]:
    lines = [*_server(other)]
    for field, info in section.model_fields.items():
        if (name, field) == ("training", "output_dir") or (name, field) in skip:
            continue
        lines.append(_comment(info, 4))
        default = None if info.default is PydanticUndefined else info.default
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json", exclude_none=True)
        hidden = "" if (name, field) in _EXAMPLES else "// "
        lines.append(f'    {hidden}"{info.alias or field}": {json.dumps(_EXAMPLES.get((name, field), default))},')
    return lines
