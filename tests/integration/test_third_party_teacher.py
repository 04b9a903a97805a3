"""A teacher backend that a third party brings through an entry point: its section, a run, and a resumed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest
from tests.support.jobs import ROOT, write_prompts

from easydistill.config.inference import InferenceConfig
from easydistill.registry import ExtensionError
from easydistill.teachers import TEACHERS

THIRD_PARTY = ROOT / "tests/support/third_party"
PROMPTS = ["one", "two", "three", "four", "five", "six"]
COMMANDS = """
import contextlib, io, json, sys
from easydistill.cli import main
found = []
for arguments in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(arguments)
    found.append((code, printed.getvalue()))
print(json.dumps(found))
"""
PAGE = """
import sys
sys.path.insert(0, "docs")
import generate
print(generate.text())
"""


def python(code: str, given: str = "") -> str:
    """What a Python prints that has the third party's package: entry points are read once a process."""
    path = os.pathsep.join([str(ROOT / "src"), str(THIRD_PARTY)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(*each: tuple[str, ...]) -> list[tuple[int, str]]:
    """Exit code and output of commands, one after the other."""
    return [tuple(found) for found in json.loads(python(COMMANDS, json.dumps(each)).splitlines()[-1])]


def config_file(folder: Path, name: str = "label", job: dict[str, Any] | None = None, **inference: Any) -> str:
    written = {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {
            "instruction_path": str(write_prompts(folder, PROMPTS)),
            "labeled_path": str(folder / "labeled.json"),
        },
        "inference": {"backend": "echo", "asked_path": str(folder / "asked.txt"), **inference},
        **(job or {}),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(written))
    return str(path)


def test_it_labels_rows_and_a_resumed_run_asks_for_the_rest_alone(tmp_path: Path) -> None:
    asked = tmp_path / "asked.txt"
    breaks = ("run", config_file(tmp_path, "breaks", repeats=2, gives_out_after=4))
    whole = ("run", config_file(tmp_path, "whole", repeats=2))
    ((code, output),) = commands(breaks)
    assert code == 1 and "the echo is gone after 4 answers" in output
    assert asked.read_text().split() == PROMPTS[:4]

    # The second of them is done already; its own keys are part of the request.
    other = ("run", config_file(tmp_path, "other", repeats=3, asked_path=str(tmp_path / "other.txt")))
    nowhere = ("run", config_file(tmp_path, "nowhere", asked_path=str(tmp_path / "no/where.txt")))
    *good, (code, output) = commands(whole, whole, other, nowhere)
    assert [code for code, _ in good] == [0, 0, 0], good
    assert asked.read_text().split() == PROMPTS
    assert (tmp_path / "other.txt").read_text().split() == PROMPTS
    rows = json.loads((tmp_path / "labeled.json").read_text())
    assert [row["output"] for row in rows] == [f"{text} {text} {text}" for text in PROMPTS]
    # What its preflight finds is a mistake in the config.
    assert code == 2 and "inference.asked_path: there is no such directory" in output


def test_its_section_is_validated_by_its_own_class_in_every_job(tmp_path: Path) -> None:
    models = {"teacher": "some/teacher", "student": "some/student"}
    echo = {"backend": "echo", "asked_path": "x"}
    wrong: list[tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
        ({}, {"repeats": 0}, ("inference.repeats", "at least 1")),
        ({}, {"repeat": 2}, ("inference.repeat:", "did you mean 'repeats'")),
        (
            {},
            {"top_k": 2},
            ("inference.top_k", 'key of backend "auto" or "ray" or "transformers" or "vllm", not of "echo"'),
        ),
        ({}, {"backend": "ecko"}, ('backend "ecko" is not one of', '"openai"', 'did you mean "echo"')),
        ({}, {"backend": "vllm"}, ("inference.asked_path", 'key of backend "echo", not of "vllm"')),
        (
            {"job_type": "instruction_scoring", "judge": {"inference": {**echo, "repeats": 0}}},
            {},
            ("judge.inference.repeats: 0 is out of range",),
        ),
        (
            {"job_type": "white_box_kd_local", "models": models},
            {},
            ('backend "echo" gives no distributions over tokens, which this job needs',),
        ),
        (
            {"job_type": "on_policy_kd", "models": models},
            {},
            ('backend "echo" gives no log-probabilities of given tokens, which this job needs',),
        ),
        (
            {"job_type": "black_box_kd_local", "models": models},
            {},
            ('backend "echo" does not run models.teacher, which this job asks',),
        ),
    ]
    files = [config_file(tmp_path, f"wrong{n}", job, **keys) for n, (job, keys, _) in enumerate(wrong)]
    judged = {"job_type": "instruction_scoring", "judge": {"inference": echo}}
    good = config_file(tmp_path, "good", judged)
    *found, (code, output) = commands(*(("validate", path) for path in [*files, good]))
    assert code == 0, output
    for (_, _, words), (code, output) in zip(wrong, found, strict=True):
        assert code == 2 and all(word in output for word in words), output


def test_the_schema_and_the_generated_documentation_know_its_keys() -> None:
    ((_, output),) = commands(("schema",))
    definitions = json.loads(output)["$defs"]
    (echo,) = (found for name, found in definitions.items() if name.startswith("label.") and "repeats" in str(found))
    assert echo["properties"]["repeats"]["description"] == "How often a prompt is repeated in its answer."
    assert "| `repeats` | integer | `1` | How often a prompt is repeated in its answer. |" in python(PAGE)


def test_a_backend_without_what_it_must_offer_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLiteral(InferenceConfig):
        pass

    class Scores(InferenceConfig):
        scores = True
        backend: Literal["mine"]

    class Good(InferenceConfig):
        backend: Literal["mine"]

    module = ModuleType("mine")
    monkeypatch.setitem(TEACHERS.__dict__, "_external", {"mine": SimpleNamespace(load=lambda: module)})
    module.plan = lambda config, model: None  # type: ignore[attr-defined]
    incomplete: list[tuple[dict[str, Any], str]] = [
        ({}, "declares no `Config`"),
        ({"Config": int}, "`Config`: "),
        ({"Config": Good}, r"`plan` cannot be called as `plan\(config, model, template\)`"),
        ({"Config": NoLiteral, "plan": lambda config, model, template: None}, r'Literal\["mine"\]'),
        ({"Config": Scores}, "LocalInferenceConfig"),
    ]
    for given, words in incomplete:
        vars(module).update(given)
        with pytest.raises(ExtensionError, match=f"easydistill.teachers:mine.*{words}"):
            TEACHERS.module("mine")
    module.Config = Good  # type: ignore[attr-defined]
    assert TEACHERS.module("mine") is module
