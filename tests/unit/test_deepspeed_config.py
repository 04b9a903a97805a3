"""What DeepSpeed is told, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from easydistill import api
from easydistill.config.deepspeed import (
    deepspeed_config,
    deepspeed_identity,
    deepspeed_notes,
    offload_devices,
    zero_stage,
)
from easydistill.config.deepspeed_checks import batch_size_issues, deepspeed_issues
from easydistill.config.launch import LaunchConfig
from easydistill.errors import ConfigError
from easydistill.methods.sft.config import TrainingConfig
from easydistill.rank import _own_extensions

USUAL: dict[str, Any] = {
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
"""As transformers' documents show it."""


def written(folder: Path, content: Any) -> str:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def launch(folder: Path, content: Any, **values: Any) -> LaunchConfig:
    return LaunchConfig(deepspeed=written(folder, content), **values)


def problems(section: LaunchConfig, **training: Any) -> list[str]:
    return [f"{issue.path}: {issue.problem}" for issue in deepspeed_issues(section, TrainingConfig(**training))]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_strategy_says_what_transformers_fills(stage: int) -> None:
    section = LaunchConfig(strategy=f"zero{stage}", offload=("optimizer",))
    told = deepspeed_config(section, bf16=True)
    assert told["zero_optimization"]["stage"] == stage
    assert told["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in told["zero_optimization"]
    assert {told[name] for name in ("gradient_clipping", "gradient_accumulation_steps", "train_batch_size")} == {"auto"}
    # float32 weights that autocast computes with, and gradients that are added up as they are.
    assert (told["bf16"]["enabled"], told["torch_autocast"]["enabled"]) == (False, True)
    assert told["torch_autocast"]["lower_precision_safe_modules"] == []
    assert "optimizer" not in told


def test_autos_are_filled_and_the_rest_is_passed_on(tmp_path: Path) -> None:
    section = launch(tmp_path, {**USUAL, "unheard_of": {"deep": [1, 2]}})
    assert zero_stage(section) == 3
    assert problems(section) == []
    told = deepspeed_config(section, bf16=False)
    assert told["unheard_of"] == {"deep": [1, 2]}
    assert told["zero_optimization"] == USUAL["zero_optimization"]
    assert (told["bf16"]["enabled"], told["fp16"]["enabled"], told["torch_autocast"]["enabled"]) == (False,) * 3
    # training.optim and training.lr_scheduler_type make them.
    assert "optimizer" not in told and "scheduler" not in told
    (note,) = deepspeed_notes(section)
    assert '"optimizer" and "scheduler"' in note and "compiled" in note


@pytest.mark.parametrize(
    ("change", "training", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, {}, ("train_micro_batch_size_per_gpu is 4", "batch_size is 1")),
        ({"gradient_accumulation_steps": 2}, {}, ("gradient_accumulation_steps is 2", "accumulation_steps is 8")),
        ({"gradient_clipping": 0.5}, {}, ("gradient_clipping is 0.5", "training.max_grad_norm is 1.0")),
        ({"bf16": {"enabled": True}}, {"bf16": False}, ("bf16.enabled is true", "training.bf16 is false")),
        ({"fp16": {"enabled": True}}, {"bf16": True}, ("fp16.enabled is true", "training.bf16 is true")),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}},
            {},
            ("optimizer.params.lr is 0.0001", "training.learning_rate is 2e-05"),
        ),
        ({"optimizer": {"type": "Lion"}}, {}, ('optimizer.type is "Lion"', 'training.optim is "adamw_torch_fused"')),
        (
            {"optimizer": {"type": "AdamW", "params": {"adam_w_mode": False}}},
            {},
            ("adam_w_mode is false", "nothing in training"),
        ),
        ({"scheduler": {"type": "OneCycle"}}, {}, ('scheduler.type is "OneCycle"', '"cosine"')),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 7}}},
            {"warmup_steps": 5},
            ("warmup_num_steps is 7", "training.warmup_steps is 5"),
        ),
        ({"zero_optimization": {"stage": 0}}, {}, ("stage is 0", "")),
        ({"zero_optimization": {}}, {}, ("stage is null", "")),
        ({"zero_optimization": True}, {}, ("zero_optimization is true", "")),
        ({"communication_data_type": "auto"}, {}, ('communication_data_type is "auto"', "nothing fills")),
        ({}, {"optim": "adafactor"}, ("training.optim", "adafactor is another algorithm")),
        ({}, {"optim": "adamw_8bit", "weights": "bfloat16"}, ("training.optim", "adamw_8bit")),
        ({}, {"compile": True}, ("training.compile", "ZeRO-3")),
    ],
)
def test_clashes_name_both_values(
    change: dict[str, Any], training: dict[str, Any], said: tuple[str, str], tmp_path: Path
) -> None:
    content = {**USUAL, **change}
    if "optim" in training:
        del content["optimizer"]
    (found,) = problems(launch(tmp_path, content), **training)
    assert all(part in found for part in said)


READ = (
    *(f"{name}.params" for name in ("optimizer", "scheduler")),
    *(f"{name}.type" for name in ("optimizer", "scheduler")),
    *("optimizer.params.lr", "optimizer.params.betas", "scheduler.params.warmup_num_steps"),
    *("zero_optimization.stage", "zero_optimization.reduce_bucket_size"),
    *(f"zero_optimization.{part}" for part in ("offload_optimizer", "offload_param")),
    *(f"zero_optimization.{part}.device" for part in ("offload_optimizer", "offload_param")),
    *(f"{name}.enabled" for name in ("bf16", "fp16", "torch_autocast")),
    *("torch_autocast.dtype", "torch_autocast.lower_precision_safe_modules"),
    *("optimizer", "scheduler", "zero_optimization", "bf16", "fp16", "torch_autocast"),
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping", "zero_force_ds_cpu_optimizer"),
)
"""Every key of a file that is read or filled."""


def with_value(key: str, value: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(USUAL))
    *above, name = key.split(".")
    inner = content
    for part in above:
        inner = inner.setdefault(part, {})
    inner[name] = value
    return dict(content)


@pytest.mark.parametrize("value", [[1], "cpu", 7, 1.5, None, True, {"a": [1]}, "auto"], ids=json.dumps)
@pytest.mark.parametrize("key", READ)
def test_a_malformed_value_is_explained_or_can_be_used(key: str, value: Any, tmp_path: Path) -> None:
    for more in ({}, {"strategy": "zero3", "offload": ("optimizer", "parameters")}):
        section = launch(tmp_path, with_value(key, value), processes=2, nodes=1, **more)
        found = deepspeed_issues(section, TrainingConfig())
        assert all(issue.problem and issue.hint for issue in found)
        assert len({issue.problem for issue in found}) == len(found)
        deepspeed_identity(section), deepspeed_notes(section), zero_stage(section)
        offload_devices(section)
        if found:
            continue
        told = deepspeed_config(section, bf16=True)
        zero = told["zero_optimization"]
        assert zero["stage"] in (1, 2, 3)
        for part in {"offload_optimizer", "offload_param"} & zero.keys():
            assert zero[part]["device"] in ("cpu", "nvme", "none")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer.params", [1], "optimizer.params is [1]"),
        ("scheduler.params", "auto", 'scheduler.params is "auto"'),
        ("zero_optimization.offload_param", "cpu", 'zero_optimization.offload_param is "cpu"'),
        ("zero_optimization.offload_optimizer.device", "gpu", 'offload_optimizer.device is "gpu"'),
        ("bf16", "auto", 'bf16 is "auto"'),
    ],
)
def test_validate_tells_of_malformed_blocks(key: str, value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        api.validate(job(tmp_path, with_value(key, value)))
    (issue,) = error.value.issues
    assert said in issue.problem


def test_an_offload_that_is_null_is_none(tmp_path: Path) -> None:
    content = {"zero_optimization": {"stage": 3, "offload_param": None, "offload_optimizer": {"device": None}}}
    assert problems(launch(tmp_path, content)) == []
    told = deepspeed_config(launch(tmp_path, content), bf16=True)["zero_optimization"]
    assert told["offload_param"] == told["offload_optimizer"] == {"device": "none"}
    assert offload_devices(launch(tmp_path, content)) == {}


def test_a_stage_is_a_whole_number(tmp_path: Path) -> None:
    for said in (True, 1.0):
        content = {"zero_optimization": {"stage": said}}
        (found,) = problems(launch(tmp_path, content, strategy="zero1"))
        assert f"stage is {json.dumps(said)}" in found


def test_equal_values_are_no_clash(tmp_path: Path) -> None:
    same = {
        "gradient_clipping": 1,
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "Adam", "params": {"lr": 2e-05, "betas": [0.9, 0.999]}},
        "bf16": {"enabled": True},
    }
    section = launch(tmp_path, {**USUAL, **same})
    assert problems(section, bf16=True) == []
    told = deepspeed_config(section, bf16=True)
    assert (told["bf16"]["enabled"], told["torch_autocast"]["enabled"]) == (True, False)


def test_a_stage_and_a_strategy(tmp_path: Path) -> None:
    assert problems(launch(tmp_path, USUAL, strategy="zero3")) == []
    (found,) = problems(launch(tmp_path, USUAL, strategy="zero2"))
    assert 'stage is 3, launch.strategy is "zero2"' in found
    unset = {**USUAL, "zero_optimization": {"stage": "auto"}}
    section = launch(tmp_path, unset, strategy="zero1")
    assert problems(section) == []
    assert deepspeed_config(section, bf16=False)["zero_optimization"]["stage"] == 1


def test_the_batch_size_is_that_of_all_processes(tmp_path: Path) -> None:
    section = launch(tmp_path, {**USUAL, "train_batch_size": 32}, processes=2, nodes=1)
    (found,) = problems(section)
    assert "train_batch_size is 32" in found and "2 processes = 16" in found
    assert problems(launch(tmp_path, {**USUAL, "train_batch_size": 16}, processes=2, nodes=1)) == []
    # Unknown here, but not where it runs.
    section = launch(tmp_path, {**USUAL, "train_batch_size": 32})
    assert problems(section) == []
    assert len(list(batch_size_issues(section, {"train_batch_size": 32}, TrainingConfig(), 2))) == 1


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not JSON"), ("[]", "no object"), ('{"a": 1, "a": 2}', '"a" is there twice')]
)
def test_a_broken_file(content: str, said: str, tmp_path: Path) -> None:
    (found,) = problems(launch(tmp_path, content))
    assert said in found and "ds.json" in found


def test_a_missing_file_may_be_on_another_machine(tmp_path: Path) -> None:
    section = LaunchConfig(deepspeed=str(tmp_path / "none.json"))
    (found,) = problems(section)
    assert "no such file" in found
    assert deepspeed_issues(section, TrainingConfig(), only_present=True) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"offload": ("optimizer",)}, "offloads nothing"),
        ({"strategy": "zero2", "offload": ("parameters",)}, "does not offload parameters"),
        ({"strategy": "ddp", "deepspeed": "ds.json"}, "names a config of DeepSpeed's"),
    ],
)
def test_strategies_refuse_what_they_cannot(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LaunchConfig(**values)


def test_only_what_can_change_the_student_is_part_of_its_identity(tmp_path: Path) -> None:
    assert deepspeed_identity(None) == {}
    assert deepspeed_identity(LaunchConfig(strategy="zero2")) == {}
    assert deepspeed_identity(launch(tmp_path, USUAL)) == {}
    learned = {"bf16": {"enabled": True}, "communication_data_type": "bf16", "zero_optimization": {"stage": 2}}
    found = deepspeed_identity(launch(tmp_path, {**USUAL, **learned}))
    assert found == {"bf16": {"enabled": True}, "communication_data_type": "bf16"}


def test_a_killed_build_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    lock = tmp_path / "torch_extensions" / "async_io" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    _own_extensions(tmp_path / "torch_extensions", rank=1)
    assert lock.exists()
    _own_extensions(tmp_path / "torch_extensions", rank=0)
    assert not lock.exists()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")


def job(folder: Path, content: Any) -> dict[str, Any]:
    return {
        "job_type": "black_box_kd_local",
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"student": str(folder)},
        "launch": {"deepspeed": written(folder, content)},
    }


def test_vllm_writes_answers_with_whole_weights(tmp_path: Path) -> None:
    policy = {
        "job_type": "grpo",
        "dataset": {"instruction_path": str(tmp_path / "rows.json")},
        "models": {"student": str(tmp_path)},
        "rewards": {"length": {"max_tokens": 20}},
        "training": {"per_device_train_batch_size": 8},
    }
    section = {"deepspeed": written(tmp_path, {"zero_optimization": {"stage": 2}}), "processes": 1}
    by_vllm = {**policy, "policy": {"rollouts": "vllm"}, "launch": section}
    api.validate(by_vllm)
    written(tmp_path, {"zero_optimization": {"stage": 3}})
    api.validate({**policy, "launch": section})
    with pytest.raises(ConfigError, match="takes over whole weights"):
        api.validate(by_vllm)


def test_validate_tells_of_clashes(tmp_path: Path) -> None:
    api.validate(job(tmp_path, USUAL))
    with pytest.raises(ConfigError) as error:
        api.validate(job(tmp_path, {**USUAL, "gradient_clipping": 0.5}))
    (issue,) = error.value.issues
    assert issue.path == "launch.deepspeed"
    assert issue.hint == 'write "auto" in the file, or set training.max_grad_norm=0.5'
