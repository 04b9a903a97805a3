"""Configs to break, and checks that hold for every complaint about a config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from easydistill.cli import main

SECRET = "sk-never-print-this"
DELETE = object()
LOCAL: dict[str, Any] = {
    "job_type": "black_box_kd_local",
    "dataset": {"instruction_path": "train.json"},
    "inference": {"temperature": 0.8},
    "models": {"teacher": "teacher/", "student": "student/"},
    "training": {"learning_rate": 2e-5},
}
API: dict[str, Any] = {
    "job_type": "black_box_kd_api",
    "dataset": {"instruction_path": "train.json"},
    "inference": {"base_url": "http://localhost:8000/v1", "api_key": SECRET},
    "models": {"student": "student/"},
}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config with values set (or removed: `DELETE`) at dotted paths."""
    config: dict[str, Any] = json.loads(json.dumps(base))
    for path, value in changes.items():
        *sections, key = path.split(".")
        target = config
        for section in sections:
            target = target.setdefault(section, {})
        if value is DELETE:
            target.pop(key, None)
        else:
            target[key] = value
    return config


def write(path: Path, config: dict[str, Any]) -> Path:
    """Write a config as JSON, one key per line."""
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def line_of(path: Path, dotted: str) -> int:
    """The line of a key in a file that `write` wrote; the line of its section if the key is missing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = at = 0
    for depth, part in enumerate(dotted.split("."), start=1):
        start = f"{' ' * 2 * depth}{json.dumps(part, ensure_ascii=False)}: "
        at = next((n for n in range(at, len(lines)) if lines[n].startswith(start)), -1)
        if at < 0:
            break
        found = at
    return found + 1


@dataclass(frozen=True)
class Complaint:
    """One issue as printed."""

    where: str
    text: str
    hint: str


def complaints(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Complaint]:
    """What `easydistill validate` prints about a bad config, parsed; checks what must always hold."""
    code = main(["validate", str(path), *arguments])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert not out
    assert "Traceback" not in err
    assert SECRET not in err
    head, *lines = err.splitlines()
    found: list[Complaint] = []
    for line in lines:
        if line.startswith("    → "):
            assert not found[-1].hint, "a hint without its problem"
            found[-1] = Complaint(found[-1].where, found[-1].text, line.removeprefix("    → "))
        else:
            where, _, text = line.partition(": ")
            found.append(Complaint(where, text, ""))
    assert head == f"error: {len(found)} problem{'s' if len(found) > 1 else ''} in the config"
    for complaint in found:
        assert complaint.where.startswith(str(path)) or complaint.where == "--set", complaint
        assert complaint.text
        assert complaint.hint, f"nothing says how to fix it: {complaint}"
    return found
