"""What `plan` says of the memory of processes that train together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_memory import CARD, QWEN_7B, shape_of

from easydistill import api
from easydistill.config.deepspeed_checks import deepspeed_issues
from easydistill.config.fsdp2_checks import fsdp2_issues
from easydistill.config.launch import LaunchConfig
from easydistill.config.training import LoraConfig
from easydistill.errors import ConfigError
from easydistill.jobs import stages_of
from easydistill.launch.place import Place
from easydistill.launch.stages import launched
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.stage import TrainStage
from easydistill.methods.shared.memory import GB, fits
from easydistill.methods.shared.sharded_memory import (
    STRATEGIES,
    Besides,
    process_lines,
    process_memory,
)
from easydistill.methods.shared.student import launch_issues

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


def advice(line: str) -> dict[str, str]:
    """The settings that a line names, which is to hold less with them."""
    words = line.rsplit("; ", 1)[1].split(" it holds")[0].split(" and without")[0].removeprefix("with ")
    return dict(part.split("=") for part in words.split(", ") if "=" in part and "launch.offload" not in part)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit", "adafactor", "paged_adamw_8bit"])
@pytest.mark.parametrize("available", [10, 24, 40, 80, 120])
@pytest.mark.parametrize("compiled", [None, True])
def test_what_is_advised_is_not_refused(optim: str, available: int, compiled: bool | None) -> None:
    training = LONG.model_copy(update={"optim": optim, "compile": compiled})
    (line,) = process_lines(shape_of(QWEN_7B), training, LaunchConfig(), 8, available * GB, bf16=True)
    if "it fits under no strategy" in line or line.endswith(f"it can have {available} GB"):
        return
    named = advice(line)
    other = LaunchConfig(strategy=named["launch.strategy"])  # type: ignore[arg-type]
    assert deepspeed_issues(other, training) + fsdp2_issues(other, training) == []


def test_eight_bit_moments_are_advised_fsdp2() -> None:
    training = LONG.model_copy(update={"optim": "adamw_8bit"})
    (line,) = process_lines(shape_of(QWEN_7B), training, LaunchConfig(), 8, 40 * GB, bf16=True)
    assert "with launch.strategy=fsdp2 it holds" in line
    training = LONG.model_copy(update={"optim": "adafactor"})
    (line,) = process_lines(shape_of(QWEN_7B), training, LaunchConfig(), 8, 40 * GB, bf16=True)
    assert "it fits under no strategy that goes with this training" in line


def test_a_student_in_parts_has_all_weights_while_it_writes_answers() -> None:
    shape, writes = shape_of(QWEN_7B), Besides(answers=True)
    for strategy in STRATEGIES:
        given = LaunchConfig(strategy=strategy)
        steps = process_memory(shape, LONG, given, 64, bf16=True).device
        both = process_memory(shape, LONG, given, 64, bf16=True, besides=writes).device
        if strategy in ("zero3", "fsdp2"):
            held = both.weights + both.gradients + both.optimiser
            # Linear layers in bfloat16, the embedding in float32.
            whole = 2 * shape.parameters + 2 * shape.vocabulary * shape.hidden
            assert both.total == max(steps.total, held + whole)
            large = process_memory(shape_of(QWEN_32B), LONG, given, 64, bf16=True, besides=writes).device
            assert "writing answers" in large.parts()
        else:
            assert both == steps


def test_a_reference_is_in_parts_where_the_student_is() -> None:
    shape, kept = shape_of(QWEN_7B), Besides(answers=True, reference=True)
    for strategy in STRATEGIES:
        given = LaunchConfig(strategy=strategy)
        without = process_memory(shape, LONG, given, 8, bf16=True).device.weights
        more = process_memory(shape, LONG, given, 8, bf16=True, besides=kept).device.weights - without
        assert more == pytest.approx((0.25 if strategy in ("zero3", "fsdp2") else 4) * shape.parameters, rel=0.08)


ANSWERING: dict[str, dict[str, Any]] = {
    "grpo": {"job_type": "grpo", "rewards": {"length": {"max_tokens": 20}}},
    "ppo": {"job_type": "ppo", "rewards": {"length": {"max_tokens": 20}}},
    "jsd": {"job_type": "on_policy_kd", "on_policy": {"objective": "generalized_jsd"}},
    "sampled": {"job_type": "on_policy_kd", "on_policy": {"objective": "sampled_reverse_kl"}},
    "cold start": {"job_type": "on_policy_kd", "on_policy": {"objective": "generalized_jsd", "sft_steps": 2}},
    "supervised": {"job_type": "black_box_kd_local"},
}


@pytest.mark.parametrize("name", ANSWERING)
def test_every_strategy_is_accepted_and_a_stage_says_what_it_holds_beside_its_steps(name: str, tmp_path: Path) -> None:
    config = {
        "dataset": {"instruction_path": str(tmp_path / "rows.json")},
        "models": {"student": str(tmp_path), **({} if name in ("grpo", "ppo") else {"teacher": str(tmp_path)})},
        "training": {"per_device_train_batch_size": 8},
        **ANSWERING[name],
    }
    for strategy in STRATEGIES:
        loaded = api.load({**config, "launch": {"strategy": strategy}})
        (train,) = (stage for stage in stages_of(loaded.job) if isinstance(stage, TrainStage))
        assert train.besides == Besides(answers=name != "supervised", reference=name in ("ppo",))


@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_vllm_takes_over_no_weights_in_parts(strategy: str, tmp_path: Path) -> None:
    config = {
        "dataset": {"instruction_path": str(tmp_path / "rows.json")},
        "models": {"student": str(tmp_path)},
        "training": {"per_device_train_batch_size": 8},
        **ANSWERING["grpo"],
        "policy": {"rollouts": "vllm"},
    }
    offload = ["optimizer", "parameters"]
    with pytest.raises(ConfigError, match="takes over whole weights"):
        api.load({**config, "launch": {"processes": 1, "strategy": strategy, "offload": offload}})


def with_file(folder: Path, zero: dict[str, Any], **launch: Any) -> LaunchConfig:
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    return LaunchConfig(deepspeed=str(folder / "ds.json"), **launch)


def test_a_file_is_named_with_its_stage_and_has_to_go(tmp_path: Path) -> None:
    shape = shape_of(QWEN_7B)
    given = with_file(tmp_path, {"stage": 1})
    (line,) = process_lines(shape, LONG, given, 8, None, bf16=True)
    assert "under DeepSpeed, " in line and "ds.json (zero1)" in line and "ddp" not in line
    (line,) = process_lines(shape, LONG, given, 8, CARD, bf16=True)
    assert "with launch.strategy=zero2 and without launch.deepspeed it holds" in line
    # Named already, beside the file.
    given = with_file(tmp_path, {"stage": 2, "offload_optimizer": {"device": "none"}}, strategy="zero2")
    compiled = LONG.model_copy(update={"compile": True})
    (line,) = process_lines(shape, compiled, given, 8, 64 * GB, bf16=True)
    assert " under zero2 (" in line and 'with launch.offload=["optimizer"] and without launch.deepspeed it' in line


def test_what_a_file_offloads_is_not_the_gpu_s(tmp_path: Path) -> None:
    shape = shape_of(QWEN_7B)
    whole = process_memory(shape, LONG, LaunchConfig(strategy="zero3"), 8, bf16=True).device
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "nvme"}}
    given = with_file(tmp_path, zero)
    found = process_memory(shape, LONG, given, 8, bf16=True)
    assert (found.device.optimiser, found.device.weights) == (0, 0)
    assert (found.host, found.disk) == (whole.optimiser, whole.weights)
    (line,) = process_lines(shape, LONG, given, 8, CARD, bf16=True)
    assert "(zero3), with optimizer and parameters offloaded" in line
    assert "GB of the CPU's memory, and" in line and "on its disk" in line
    # Weights that are whole stay where they are.
    given = with_file(tmp_path, {"stage": 2, "offload_param": {"device": "cpu"}})
    assert process_memory(shape, LONG, given, 8, bf16=True).host == 0


@pytest.mark.parametrize(
    ("gpus", "launch", "said"),
    [
        (4, {"processes": 8}, "launch.processes is 8, and this machine has 4 GPUs"),
        (1, {"processes": 2}, "launch.processes is 2, and this machine has 1 GPU"),
        (8, {"processes": 8}, None),
        (0, {"processes": 8}, None),
        (4, {"processes": "auto"}, None),
        (4, {"processes": 8, "gpu_memory_gb": 80}, None),
    ],
)
def test_more_processes_than_gpus_are_refused_before_anything_starts(
    gpus: int, launch: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    found = launch_issues(LaunchConfig(**launch), LONG)
    assert [issue.problem for issue in found] == ([said] if said else [])
    assert all(f"launch.processes={gpus}" in issue.hint for issue in found)


def test_a_process_of_a_launcher_s_may_see_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with launched(Place(launcher="srun", local_rank=3, local_size=8)):
        assert launch_issues(LaunchConfig(processes=8), LONG) == []
