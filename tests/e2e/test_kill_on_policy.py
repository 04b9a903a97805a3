"""kill -9 of on-policy distillation, in its start and after the student has been judged: the files are the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_on_policy_kd import job
from tests.support.jobs import run, start, write_config

from easydistill.data.files import hash_file

SECTIONS: dict[str, dict[str, Any]] = {
    "schedule": {"kd_steps": 3, "max_new_tokens_start": 3, "steps_per_rollout": 2, "beta_answers": 0.0},
    "top_k": {"objective": "top_k_reverse_kl", "top_k": 8, "steps_per_rollout": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_a_killed_run_ends_in_the_same_files(name: str, tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for attempt, kills in (("whole", []), ("killed", [2, 5])):
        folder = tmp_path / attempt
        folder.mkdir()
        made = job(folder, tiny_model, {"from": str(tiny_model), "keep_layers": 2}, **SECTIONS[name])
        made["training"] |= {"num_train_epochs": 3, "save_steps": 1}
        made["evaluation"] = {"enabled": False}
        path = write_config(folder, made)
        for step in kills:
            process = start(path)
            pattern = "run/stages/2-train/checkpoints/*/on_policy/checkpoint-*/whole.json"
            while process.poll() is None:
                if any(int(one.parent.name.rsplit("-", 1)[1]) >= step for one in folder.glob(pattern)):
                    process.kill()
                    break
                time.sleep(0.01)
            out, _ = process.communicate()
            assert process.returncode == -9, out
        code, out = run(path)
        assert code == 0, out
        metrics = json.loads((folder / "run/summary.json").read_text())["stages"]["train"]["metrics"]
        chosen = {key: metrics.get(key) for key in ("fit", "final_loss", "trained_tokens")}
        found.append((hash_file(folder / "run/student/model.safetensors"), chosen))
    assert found[0] == found[1]
    assert (found[0][1]["fit"] is not None) == (name == "schedule")
