"""The wheel in a fresh environment, without the repository: the quickstart from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.wheels import ROOT, build, install

import easydistill

pytestmark = pytest.mark.slow
SMALL = [
    "dataset.max_samples=12",
    "inference.max_new_tokens=12",
    "models.student.keep_layers=2",
    "training.max_steps=2",
    "evaluation.heldout=4",
    "evaluation.max_new_tokens=8",
]


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    return install(build("wheel", ROOT, folder / "dist"), folder / "venv")


@pytest.fixture
def run(bin: Path, tmp_path: Path) -> Callable[..., str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(command: str, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [bin / command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


def test_it_is_the_wheel_that_runs(bin: Path, run: Callable[..., str]) -> None:
    assert run("easydistill", "--version") == f"easydistill {easydistill.__version__}\n"
    where = run("python", "-c", "import easydistill; print(easydistill.__file__)").strip()
    assert Path(where).is_relative_to(bin.parent)


def test_the_quickstart_from_an_empty_folder(run: Callable[..., str], tmp_path: Path) -> None:
    told = run("easydistill", "init", "quickstart")
    assert told.endswith("next:\n  easydistill run quickstart.jsonc\n")
    run("easydistill", "validate", "quickstart.jsonc")
    out = run("easydistill", "run", "quickstart.jsonc", *(part for item in SMALL for part in ("--set", item)))
    assert "report.html" in out
    directory = tmp_path / "runs/quickstart"
    summary = json.loads((directory / "summary.json").read_text())
    assert set(summary["stages"]) == {"label", "score", "train", "evaluate"}
    # Templates of the report are files of the package, too.
    assert "<style>" in (directory / "report.html").read_text()
    assert (directory / "student/model.safetensors").exists()


def test_files_beside_the_code_are_found(run: Callable[..., str], tmp_path: Path) -> None:
    """Prompts of operators, recipes with their rows, recorded identities: whatever is read when a run starts."""
    assert "thoughtx" in run("easydistill", "recipes")
    run("easydistill", "validate", "recipe:thoughtx:small")
    run("easydistill", "init", "--recipe", "distilqwen2", "--small", "-o", "mine")
    assert list((tmp_path / "mine/data").iterdir())
    assert "[user]" in run("easydistill", "preview", "-n", "1", "recipe:distilqwen2:small")
