"""Students that see, trained by several processes, of which some have batches without images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_vision_jobs import job, made_rows, weights

import easydistill

pytestmark = pytest.mark.slow


def trained(folder: Path, launch: dict[str, Any] | None, **training: Any) -> dict[str, torch.Tensor]:
    folder.mkdir()
    texts = [{"id": f"t{number}", "instruction": f"Say {number}.", "output": "yes"} for number in range(20)]
    config = job(folder, "llava", [*made_rows(folder)[:20], *texts], num_train_epochs=1, max_steps=4, **training)
    config |= {"job_type": "black_box_kd_local", "evaluation": {"enabled": False}, "launch": launch}
    config["training"] |= {"gradient_accumulation_steps": 2, "optim": "sgd", "lr_scheduler_type": "constant"}
    (folder / "job.json").write_text(json.dumps(config))
    assert easydistill.run(config).exit_code == 0
    return weights(folder)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_processes_learn_what_one_learns(way: str, checkpointing: bool, tmp_path: Path) -> None:
    settings = {"gradient_checkpointing": checkpointing}
    one = trained(tmp_path / "one", None, per_device_train_batch_size=2, **settings)
    launch = {"processes": 2, "strategy": way}
    two = trained(tmp_path / "two", launch, per_device_train_batch_size=1, **settings)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-4), name
