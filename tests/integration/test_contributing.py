"""CONTRIBUTING.md shows a package with one extension of each kind: written from that page, run, and resumed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import ROOT, TRAINING, write_prompts

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
RUN = """
import json, sys
import easydistill
from easydistill.errors import ConfigError
found = {}
for name, config in json.load(sys.stdin).items():
    try:
        result = easydistill.run(config, quiet=True)
        found[name] = {"fresh": result.fresh, "summary": result.summary, "directory": str(result.run_directory)}
    except ConfigError as error:
        found[name] = {"error": str(error)}
print(json.dumps(found))
"""


def write_package(folder: Path) -> Path:
    """The package that the page shows, as an installed one looks to Python."""
    (points,) = (tomllib.loads(text)["project"]["entry-points"] for kind, text in BLOCKS if kind == "toml")
    for _, text in BLOCKS:
        where = re.match(r"# (acme_distil/\S+)\n", text)
        if where:
            path = folder / where[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text[where.end() :], encoding="utf-8")
    (folder / "acme_distil/__init__.py").touch()
    about = folder / "acme_distil-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-distil\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in of.items()) for group, of in points.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(package: Path, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run configs where the package is installed, one after the other in one process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(package)])}
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(configs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("acme"))


def jobs(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    """One job for each kind of extension."""
    prompts = str(write_prompts(folder, [f"Name {count} rivers." for count in range(2, 14)]))
    parrot = {"backend": "parrot"}
    training = {**TRAINING, "max_steps": 2}
    return {
        "operator": {
            "job_type": "titles",
            "output_dir": str(folder / "titles"),
            "dataset": {"instruction_path": prompts},
            "inference": parrot,
        },
        "job": {
            "job_type": "answer_twice",
            "output_dir": str(folder / "twice"),
            "dataset": {"instruction_path": prompts},
            "inference": parrot,
            "track": {"table": {"separator": ";"}},
        },
        "loss and metric": {
            "job_type": "white_box_kd_local",
            "output_dir": str(folder / "kd"),
            "dataset": {"instruction_path": prompts},
            "models": {"teacher": str(model), "student": {"from": str(model), "keep_layers": 2}},
            "inference": {"backend": "transformers", "max_new_tokens": 8},
            "signals": {"kind": "top_k", "k": 8},
            "distillation": {"distillation_type": "hellinger"},
            "training": training,
            "evaluation": {"heldout": 3, "max_new_tokens": 8, "metrics": {"kl": {}, "length_ratio": {"limit": 0.5}}},
        },
        "reward": {
            "job_type": "grpo",
            "output_dir": str(folder / "grpo"),
            "dataset": {"instruction_path": prompts},
            "models": {"student": str(model)},
            "policy": {"num_generations": 2, "max_new_tokens": 4},
            "rewards": {"brevity": {"words": 2}},
            "training": {"max_steps": 1, "per_device_train_batch_size": 4},
            "evaluation": {"heldout": 2},
        },
    }


def test_what_the_page_shows_runs_and_resumes(package: Path, tiny_model: Path, tmp_path: Path) -> None:
    configs = jobs(tmp_path, tiny_model)
    first = run(package, configs)
    assert all(found.get("fresh") for found in first.values()), first
    titles = json.loads(next((tmp_path / "titles").glob("stages/*/labeled.json")).read_text())
    assert len(titles) == 12 and {row["title"] for row in titles} == {"A parrot"}
    twice = json.loads(next((tmp_path / "twice").glob("stages/*/twice.json")).read_text())
    assert twice[0]["output"] == 2 * f"You said: {twice[0]['instruction']}"
    (table,) = tmp_path.rglob("figures.csv")
    assert "labelling/rows;12;12" in table.read_text().replace(".0", "").splitlines()
    after = first["loss and metric"]["summary"]["metrics"]["after"]
    assert set(after) == {"kl", "length_ratio"} and 0 <= after["length_ratio"] <= 0.5
    assert "| length ratio |" in (tmp_path / "kd/report.md").read_text()
    assert "brevity" in json.dumps(first["reward"]["summary"])

    asked = {path: path.read_text() for path in tmp_path.rglob("asked.txt")}
    assert len(asked) == 2 and all(len(text.split()) == 12 for text in asked.values())
    # Two stages are not complete any more; their answers are in the journal.
    for name in ("titles", "twice"):
        next((tmp_path / name).glob("stages/1-*/manifest.json")).unlink()
    again = run(package, configs)
    assert [found["fresh"] for found in again.values()] == [True, True, False, False]
    assert {path: path.read_text() for path in tmp_path.rglob("asked.txt")} == asked


BROKEN = {
    "hellinger": ("losses", "loss and metric", "def divergence", "def distance", "declares no `divergence(config, "),
    "titles": ("operators", "operator", "REASONS", "WHY", "declares no `REASONS`"),
    "title": ("operators", "operator", 'PROMPTS = ("title",)', 'PROMPTS = ("caption",)', "no prompts/caption.en.txt"),
    "brevity": ("rewards", "reward", "def make", "def create", "declares no `make(config, context)`"),
    "length_ratio": ("metrics", "loss and metric", "def score", "def rate", "a method `score`"),
    "parrot": ("teachers", "job", "def plan", "def teach", "declares no `plan(config, model, template)`"),
    "table": ("sinks", "job", "def make", "def create", "declares no `make(config, context)`"),
    "answer_twice": ("jobs", "job", '["answer_twice"]', '["twice"]', 'must be Literal["answer_twice"]'),
    "import": (
        "losses",
        "loss and metric",
        "from typing",
        "from typings",
        "No module named 'typings'",
    ),
}


def test_what_an_extension_lacks_is_named_before_anything_is_asked(tiny_model: Path, tmp_path: Path) -> None:
    """And the other extensions of the package go on working."""
    for name, (kind, job, before, after, words) in BROKEN.items():
        folder = tmp_path / name
        folder.mkdir()
        broken = write_package(folder)
        module = {"title": "titles", "import": "hellinger"}.get(name, name)
        path = broken / f"acme_distil/{module}.py"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
        configs = jobs(folder, tiny_model)
        sound = "job" if job == "operator" else "operator"
        found = run(broken, {"broken": configs[job], **({} if kind == "teachers" else {"sound": configs[sound]})})
        assert words in found["broken"]["error"], found["broken"]
        assert f"entry point easydistill.{kind}:{module} of acme-distil 1.0" in found["broken"]["error"]
        assert not list(folder.rglob("journal.jsonl")) or kind != "teachers"
        assert kind == "teachers" or found["sound"]["fresh"]
