"""Students that see, learning from their own answers in two processes, which at times have prompts of text alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.test_vision_rl_jobs import job, weights
from tests.support.vision_models import vision_model

import easydistill

pytestmark = pytest.mark.slow


def trained(folder: Path, kind: str, launch: dict[str, Any] | None, batch: int, **changes: Any) -> dict[str, Any]:
    config = job(folder, kind, "llava", evaluation={"enabled": False}, launch=launch, **changes)
    config["training"] |= {"per_device_train_batch_size": batch, "optim": "sgd", "learning_rate": 0.05}
    # In a step of text alone, several processes give the connector a gradient of zeros, and one process none at all,
    # which only weight decay can tell apart.
    config["training"] |= {"weight_decay": 0.0, "warmup_ratio": 0.0, "lr_scheduler_type": "constant", "max_steps": 4}
    if kind in ("grpo", "ppo"):
        config["policy"] |= {"eval_steps": 0, "steps_per_rollout": 2, "num_iterations": 1}
    rows = json.loads((folder / "rows.json").read_text())
    texts = [{**rows[-1], "id": f"t{number}", "instruction": f"Say {number}."} for number in range(12)]
    (folder / "rows.json").write_text(json.dumps([*rows[:6], rows[-2], *texts]))
    assert easydistill.run(config).exit_code == 0
    return weights(folder)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["grpo", "ppo", "generalized_jsd", "sampled_reverse_kl"])
def test_processes_learn_what_one_learns(kind: str, checkpointing: bool, tmp_path: Path) -> None:
    settings = {"training": {"gradient_checkpointing": checkpointing}}
    batch = 4 if kind in ("grpo", "ppo") else 1
    one = trained(tmp_path / "one", kind, None, 2 * batch, **settings)
    two = trained(tmp_path / "two", kind, {"processes": 2}, batch, **settings)
    start = load_file(vision_model("llava") / "model.safetensors")
    assert one.keys() == two.keys()
    assert max(float((value - start[name]).abs().max()) for name, value in one.items() if name in start) > 1e-3
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-4), name
