"""What `plan` says of the memory of processes that train together."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.test_memory import CARD, QWEN_7B, shape_of

from easydistill.config.launch import LaunchConfig
from easydistill.config.training import LoraConfig
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.memory import GB, fits
from easydistill.methods.shared.sharded_memory import STRATEGIES, process_lines, process_memory

LONG = TrainingConfig(max_length=4096, gradient_checkpointing=True)
QWEN_32B = QWEN_7B | {
    "hidden_size": 5120,
    "intermediate_size": 27_648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}


def held(config: dict[str, Any], strategy: str, ranks: int, **launch: Any) -> int:
    given = LaunchConfig(strategy=strategy, **launch)  # type: ignore[arg-type]
    return process_memory(shape_of(config), LONG, given, ranks, bf16=True).device.total


def test_each_strategy_holds_less_than_the_one_before() -> None:
    sizes = [held(QWEN_7B, strategy, 8) for strategy in ("ddp", "zero1", "zero2", "fsdp2")]
    assert sizes == sorted(sizes, reverse=True)
    assert held(QWEN_7B, "zero3", 8) < held(QWEN_7B, "zero2", 8)


def test_a_7b_student_fits_eight_cards_and_a_32b_student_thirty_two() -> None:
    assert not fits(process_memory(shape_of(QWEN_7B), LONG, LaunchConfig(), 8, bf16=True).device, CARD)
    for config, ranks in ((QWEN_7B, 8), (QWEN_32B, 32)):
        for strategy in ("fsdp2", "zero3"):
            assert held(config, strategy, ranks) < 0.95 * CARD


def test_what_is_shared_out_shrinks_with_the_number_of_processes() -> None:
    for strategy in STRATEGIES:
        four, eight = held(QWEN_7B, strategy, 4), held(QWEN_7B, strategy, 8)
        assert (eight < four) == (strategy != "ddp")


def test_adapters_leave_little_to_share_but_the_weights() -> None:
    training = LONG.model_copy(update={"lora": LoraConfig()})
    shape = shape_of(QWEN_7B)
    ddp, zero2, fsdp2 = (
        process_memory(shape, training, LaunchConfig(strategy=name), 8, bf16=True).device
        for name in ("ddp", "zero2", "fsdp2")
    )
    assert zero2.total == pytest.approx(ddp.total, rel=0.02)
    assert fsdp2.weights < 0.2 * ddp.weights


def test_what_is_offloaded_is_the_host_s() -> None:
    shape = shape_of(QWEN_7B)
    here = process_memory(shape, LONG, LaunchConfig(strategy="zero3"), 8, bf16=True)
    given = LaunchConfig(strategy="zero3", offload=("optimizer", "parameters"))
    there = process_memory(shape, LONG, given, 8, bf16=True)
    assert there.host == here.device.optimiser + here.device.weights
    assert there.device.total + there.host == here.device.total


def test_the_line_names_the_first_strategy_that_fits() -> None:
    shape = shape_of(QWEN_7B)
    (line,) = process_lines(shape, LONG, LaunchConfig(), 8, CARD, bf16=True)
    assert "in each of 8 processes under ddp" in line and "can have 80 GB; with launch.strategy=zero2 " in line
    (line,) = process_lines(shape, LONG, LaunchConfig(strategy="fsdp2"), 8, CARD, bf16=True)
    assert line.endswith("it can have 80 GB")
    (line,) = process_lines(shape, LONG, LaunchConfig(), 2, 24 * GB, bf16=True)
    assert 'launch.offload=["optimizer", "parameters"]' in line or "no strategy" in line
    (line,) = process_lines(shape, LONG, LaunchConfig(), 8, None, bf16=True)
    assert "can have" not in line
    assert process_lines(None, LONG, LaunchConfig(), 8, CARD, bf16=True) == []
