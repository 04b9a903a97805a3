"""What `plan` says of a training's memory: near what trainings take, and true of a 7B student on one 80 GB card."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from easydistill.config.models import FreshStudent, ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.launch.processes import Share, rank_environment
from easydistill.methods.dpo.config import DpoTrainingConfig
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.estimates import TrainingFacts, training_estimate
from easydistill.methods.shared.memory import GB, fits, memory_lines, remedy, training_memory
from easydistill.methods.shared.outlook import Steps
from easydistill.models.size import ModelShape, student_parameters, student_shape

CARD = 80 * GB
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}
TIED = QWEN_7B | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
TIED |= {"num_key_value_heads": 2, "vocab_size": 16_384, "tie_word_embeddings": True}
UNTIED = TIED | {"model_type": "llama", "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 6}
UNTIED |= {"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32_768, "tie_word_embeddings": False}


def shape_of(config: dict[str, Any]) -> ModelShape:
    found = student_shape(ModelsConfig(student=FreshStudent(config=config)))
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "training"),
    [
        (TIED, {"bf16": False}),
        (TIED, {"bf16": True}),
        (UNTIED, {"bf16": False, "gradient_checkpointing": True}),
        (UNTIED, {"bf16": True, "lora": {}}),
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(config: dict[str, Any], training: dict[str, Any]) -> None:
    base = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    base |= {"max_length": 512, "save_steps": 100_000, "loss_chunk_bytes": 1 << 23}
    command = [sys.executable, "-m", "tests.support.peak_memory", json.dumps(config), json.dumps(base | training)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(out.strip().splitlines()[-1])
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "training"),
    [
        ({"strategy": "ddp"}, {}),
        ({"strategy": "zero1"}, {}),
        ({"strategy": "zero2"}, {}),
        ({"strategy": "fsdp2"}, {}),
        ({"strategy": "zero3"}, {}),
        ({"strategy": "fsdp2"}, {"bf16": True, "gradient_checkpointing": True}),
        ({"strategy": "zero3"}, {"bf16": True, "gradient_checkpointing": True}),
        ({"strategy": "fsdp2"}, {"lora": {}}),
    ],
)
def test_the_estimate_for_two_processes_is_near_their_peaks(launch: dict[str, Any], training: dict[str, Any]) -> None:
    base = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "bf16": False}
    base |= {"max_length": 512, "save_steps": 100_000, "loss_chunk_bytes": 1 << 23}
    found = peaks_of_two(UNTIED, base | training, launch)
    for one in found:
        assert one["estimate"] == pytest.approx(one["peak"], rel=0.25), found


def peaks_of_two(config: dict[str, Any], training: dict[str, Any], launch: dict[str, Any]) -> list[dict[str, int]]:
    command = [sys.executable, "-m", "tests.support.peak_memory", *map(json.dumps, (config, training, launch))]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        share = Share(count=2, port=probe.getsockname()[1])
    fixed = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    if launch["strategy"] == "fsdp2":
        # What is freed goes back at once. Else malloc keeps layers that were gathered, in a heap that it cannot shrink.
        fixed |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **fixed, **rank_environment(share, number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    told = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks)
    return [json.loads(out.strip().splitlines()[-1]) for out in told]


def test_parameters_are_counted_from_the_shape() -> None:
    assert student_parameters(ModelsConfig(student=FreshStudent(config=QWEN_7B))) == pytest.approx(7.6156e9, rel=1e-3)
    assert student_shape(ModelsConfig(student=FreshStudent(config={"model_type": "mamba2"}))) is None


def test_a_7b_student_does_not_fit_80_gb_with_plain_adamw_and_does_in_bfloat16_with_8_bit_moments() -> None:
    shape = shape_of(QWEN_7B)
    plain = training_memory(shape, TrainingConfig(gradient_checkpointing=True), bf16=True)
    assert plain.weights + plain.gradients + plain.optimiser == pytest.approx(16 * 7.6e9, rel=0.01)
    assert not fits(plain, CARD)
    small = TrainingConfig(gradient_checkpointing=True, weights="bfloat16", optim="adamw_8bit", max_length=4096)
    assert fits(training_memory(shape, small, bf16=True), CARD)
    assert not fits(training_memory(shape, TrainingConfig(optim="adamw_8bit"), bf16=True), CARD)


def test_the_settings_with_which_it_fits_are_named() -> None:
    shape = shape_of(QWEN_7B)
    (line,) = memory_lines(shape, TrainingConfig(), (CARD, "the GPU"), bf16=True)
    assert "optimiser 60.9" in line and "the GPU has 80 GB" in line
    for setting in ("gradient_checkpointing=true", "weights=bfloat16", "optim=adamw_8bit"):
        assert f"training.{setting}" in line
    small = TrainingConfig(gradient_checkpointing=True, weights="bfloat16", optim="adamw_8bit")
    assert memory_lines(shape, small, (CARD, "the GPU"), bf16=True) == []
    assert memory_lines(None, TrainingConfig(), (CARD, "the GPU"), bf16=True) == []


@pytest.mark.parametrize(
    ("available", "setting"),
    [(150 * GB, "gradient_checkpointing"), (90 * GB, "weights"), (24 * GB, "lora"), (10 * GB, None)],
)
def test_the_settings_that_cost_least_come_first(available: int, setting: str | None) -> None:
    """And what is named is a config that validates, and fits."""
    training = TrainingConfig(max_length=2048, per_device_train_batch_size=2)
    found = remedy(shape_of(QWEN_7B), training, int(available / 0.95), bf16=True)
    if setting is None:
        assert found is None
        return
    assert found is not None
    words, memory = found
    assert setting in words and memory.total <= available
    changes: dict[str, Any] = dict(part.removeprefix("training.").split("=") for part in words.split(", "))
    if "lora" in changes:
        changes["lora"] = LoraConfig()
    TrainingConfig(**({"max_length": 2048, "per_device_train_batch_size": 2} | changes))


def test_pairs_take_twice_the_activations() -> None:
    models = ModelsConfig(student=FreshStudent(config=TIED))
    kinds = (Steps(loss="tiles"), Steps(of="pairs", loss="tiles"))
    facts = (TrainingFacts(models, DpoTrainingConfig(), steps=steps) for steps in kinds)
    one, two = (training_estimate(each).memory_bytes for each in facts)
    assert one is not None and two is not None and two > one
