"""Pairs about images, trained on by several processes, of which some have batches without images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_vision_pair_jobs import figures, job, made_pairs, weights
from tests.support.vision_models import vision_model

import easydistill

pytestmark = pytest.mark.slow


def trained(kind: str, folder: Path, launch: dict[str, Any] | None, **training: Any) -> dict[str, torch.Tensor]:
    folder.mkdir()
    texts = [{"id": f"t{n}", "prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no, never"} for n in range(20)]
    settings = {"max_steps": 4, "optim": "sgd", "lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    settings |= {"learning_rate": 3e-2, "max_grad_norm": 1e9, "num_train_epochs": 1, **training}
    config = job(kind, folder, str(vision_model("llava")), [*made_pairs(folder)[:12], *texts], **settings)
    config |= {"launch": launch, "evaluation": {"heldout": 4}}
    (folder / "job.json").write_text(json.dumps(config))
    assert easydistill.run(config).exit_code == 0
    return weights(folder)


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
@pytest.mark.parametrize("way, checkpointing", [("ddp", False), ("ddp", True), ("fsdp2", False)])
def test_processes_learn_what_one_learns(kind: str, way: str, checkpointing: bool, tmp_path: Path) -> None:
    settings = {"gradient_checkpointing": checkpointing}
    one = trained(kind, tmp_path / "one", None, per_device_train_batch_size=2, **settings)
    launch = {"processes": 2, "strategy": way}
    two = trained(kind, tmp_path / "two", launch, per_device_train_batch_size=1, **settings)
    assert one.keys() == two.keys()
    shorter = trained(kind, tmp_path / "shorter", None, per_device_train_batch_size=2, **{**settings, "max_steps": 1})
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-4), name
    assert max(float((value - shorter[name]).abs().max()) for name, value in one.items()) > 1e-3
    for name, value in figures(tmp_path / "one")["after"].items():
        assert figures(tmp_path / "two")["after"][name] == pytest.approx(value, abs=1e-3), name
