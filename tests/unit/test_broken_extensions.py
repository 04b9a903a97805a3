"""Entry points that cannot be used: an error that says which, of which package, and why, for configs that name them alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

POINTS = """
[easydistill.jobs]
brew = acme_gone.brew
dpo = acme_gone.dpo
[easydistill.losses]
zip = acme_gone.zip
[easydistill.metrics]
wit = acme_raises
[easydistill.operators]
shout = acme_raises:thing
[easydistill.rewards]
tip = acme_empty
"""
CONFIG = {
    "job_type": "white_box_kd_local",
    "dataset": {"instruction_path": "x.json"},
    "models": {"teacher": "org/teacher", "student": "org/student"},
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with an installed distribution whose extensions are all broken."""
    folder = tmp_path / "packages"
    about = folder / "acme_extensions-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-extensions\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(POINTS)
    (folder / "acme_raises.py").write_text("raise RuntimeError('no licence key')\n")
    (folder / "acme_empty.py").touch()
    (tmp_path / "kd.json").write_text(json.dumps(CONFIG))
    return folder


def command(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "easydistill", *arguments],
        capture_output=True,
        text=True,
        cwd=packages.parent,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize(
    "arguments", [["validate", "--elsewhere", "kd.json"], ["schema"], ["init", "dpo"], ["init", "ppo"]]
)
def test_commands_that_use_none_of_them_work(packages: Path, arguments: list[str]) -> None:
    done = command(packages, *arguments)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize(
    ("override", "point", "why"),
    [
        ("job_type=brew", "jobs:brew", "ModuleNotFoundError: No module named 'acme_gone'"),
        ("job_type=shout", "operators:shout", "RuntimeError: no licence key"),
        ("distillation.distillation_type=zip", "losses:zip", "ModuleNotFoundError: No module named 'acme_gone'"),
        ("evaluation.metrics.wit={}", "metrics:wit", "RuntimeError: no licence key"),
    ],
)
def test_a_config_that_names_one_is_refused(packages: Path, override: str, point: str, why: str) -> None:
    done = command(packages, "validate", "kd.json", "--set", override)
    assert done.returncode == 2
    assert f"entry point easydistill.{point} of acme-extensions 1.2: " in done.stderr and why in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_lists_them(packages: Path) -> None:
    done = command(packages, "doctor", "--quick")
    assert done.returncode == 0, done.stderr
    shown = {line[4:].split("  ")[0]: line for line in done.stdout.splitlines()}
    for name in ("jobs: brew", "losses: zip", "metrics: wit", "operators: shout", "rewards: tip"):
        assert shown[name].startswith("-- "), name
    assert "declares no `Config`" in shown["rewards: tip"]
    assert "a module of easydistill has the same name" in shown["jobs: dpo"]
