"""Students that see, under ZeRO and fully sharded: some processes have batches without images."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_deepspeed import Result, assert_same, result
from tests.e2e.test_launch import assert_all_gone, wait_for_step, weights
from tests.integration.test_vision_jobs import job, made_rows
from tests.support.jobs import run_here, start, write_config

pytest.importorskip("deepspeed")


def launched(folder: Path, family: str, processes: int, strategy: str | None, **training: Any) -> dict[str, Any]:
    """Eight rows a step: some have an image, one has two, most have none."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"id": f"t{number}", "instruction": f"Say {number}.", "output": "yes"} for number in range(36)]
    rows = made_rows(folder)[:20]
    rows[3] |= {"images": rows[3]["images"] * 2, "instruction": "<image> and <image>\nColour?"}
    values = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "group_by_length": False}
    # Differences in the last digits are not to grow.
    values |= {"learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0, "bf16": False, **training}
    config = job(folder, family, [*rows, *texts], per_device_train_batch_size=4 // processes, **values)
    config |= {"job_type": "black_box_kd_local", "evaluation": {"enabled": False}}
    config["launch"] = None if strategy is None else {"processes": processes, "strategy": strategy}
    return config


def learned(*arguments: Any, **training: Any) -> Result:
    config = launched(*arguments, **training)
    code, out = run_here(write_config(arguments[0], config))
    assert code == 0, out
    found = list((arguments[0] / "run" / "features").glob("*/values.bin"))
    assert bool(found) == (training.get("cache_image_features") is True)
    return result(arguments[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process learns of pixels, each training once."""
    known: dict[str, Result] = {}

    def find(family: str, **training: Any) -> Result:
        name = json.dumps([family, training], sort_keys=True)
        if name not in known:
            folder = tmp_path_factory.mktemp("alone")
            known[name] = learned(folder, family, 1, None, cache_image_features=False, **training)
        return known[name]

    return find


SLOW = pytest.mark.slow
LORA = {"lora": {"r": 4}}
# Without decay: the last layer of LLaVA's tower is not used, and its gradients are none alone and zeros under ZeRO.
ALL = {"weight_decay": 0, "train_parts": ["language", "connector", "vision"]}


@pytest.mark.parametrize(
    ("family", "strategy", "cached", "training"),
    [
        ("llava", "zero3", True, {}),
        *(
            pytest.param("llava", way, kept, {}, marks=SLOW)
            for way in ("ddp", "zero2", "fsdp2")
            for kept in (True, False)
        ),
        pytest.param("llava", "zero3", False, {}, marks=SLOW),
        *(pytest.param("llava", way, False, ALL, marks=SLOW) for way in ("ddp", "zero2", "zero3", "fsdp2")),
        *(
            pytest.param(family, way, family != "gemma3", {}, marks=SLOW)
            for family in ("idefics3", "qwen2_5_vl", "qwen3_vl", "gemma3")
            for way in ("zero2", "zero3", "fsdp2")
        ),
        *(pytest.param("llava", way, kept, LORA, marks=SLOW) for way in ("zero3", "fsdp2") for kept in (True, False)),
        pytest.param("llava", "zero3", True, {"gradient_checkpointing": True}, marks=SLOW),
    ],
)
def test_two_processes_learn_what_one_learns(
    family: str, strategy: str, cached: bool, training: dict[str, Any], alone: Any, tmp_path: Path
) -> None:
    expected = alone(family, **training)
    assert_same(learned(tmp_path, family, 2, strategy, cache_image_features=cached, **training), expected)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_an_interrupted_run_resumes(strategy: str, cached: bool, tmp_path: Path) -> None:
    settings = {"max_steps": 16, "cache_image_features": cached}
    learned(tmp_path / "whole", "llava", 2, strategy, **settings)
    config = write_config(tmp_path / "killed", launched(tmp_path / "killed", "llava", 2, strategy, **settings))
    run = start(config)
    ranks = wait_for_step(run, tmp_path / "killed", 4)
    os.kill(ranks[1], signal.SIGKILL)
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 1, out
    assert_all_gone(ranks)
    code, out = run_here(config)
    assert code == 0, out
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
