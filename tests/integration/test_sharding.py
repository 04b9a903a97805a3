"""What fsdp2 does to a model and its checkpoints, in a process alone; tests/e2e/test_fsdp2.py trains in two."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from pydantic import ValidationError
from tests.integration.test_supervised import config, rows, student, weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_map
from transformers import Trainer

from easydistill import api
from easydistill.config.fsdp2_checks import fsdp2_issues
from easydistill.config.launch import LaunchConfig
from easydistill.config.models import ModelsConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, ModelError
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.strategies import base, fsdp2, parts
from easydistill.models.loading import without_weights
from easydistill.models.student import Student, build_student


@pytest.fixture
def alone() -> Iterator[None]:
    """A process of a training under fsdp2, the only one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    base.use(LaunchConfig(strategy="fsdp2"))
    yield
    base.use(LaunchConfig())
    dist.destroy_process_group()


def trained(tiny_model: Path, folder: Path, stop: StopSignal | None = None, **values: Any) -> Student:
    made = student(tiny_model)
    settings = config(save_steps=2, **values)
    supervised.train(made, rows(40), settings, folder, Reporter(None, quiet=True), stop or StopSignal())
    return made


class StopAfter(StopSignal):
    """Asks to stop after so many looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("values", [{}, {"lora": {"r": 2, "dropout": 0.1}}], ids=["full", "lora"])
def test_an_interrupted_training_ends_as_a_whole_one(
    values: dict[str, Any], tiny_model: Path, tmp_path: Path, alone: None
) -> None:
    whole = weights(trained(tiny_model, tmp_path / "whole", **values))
    trained(tiny_model, tmp_path / "cut", StopAfter(3), **values)
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
    assert json.loads((checkpoint / "whole.json").read_text())["strategy"] == "fsdp2"
    again = trained(tiny_model, tmp_path / "cut", **values)
    for name, value in weights(again).items():
        assert torch.equal(value, whole[name]), name


def test_the_student_is_an_ordinary_module_again(tiny_model: Path, tmp_path: Path, alone: None) -> None:
    made = trained(tiny_model, tmp_path)
    fresh = student(tiny_model).model
    assert type(made.model) is type(fresh)
    for ours, other in zip(made.model.modules(), fresh.modules(), strict=True):
        assert type(ours) is type(other)
        assert not ours._forward_hooks and not ours._forward_pre_hooks
        assert ours.__dict__.keys() == other.__dict__.keys()
    assert all(type(value) is torch.nn.Parameter for value in made.model.parameters())
    assert made.model.lm_head.weight is made.model.model.embed_tokens.weight
    with torch.inference_mode():
        assert made.model(input_ids=torch.arange(6)[None]).logits.isfinite().all()


def test_layers_are_groups_of_their_own_and_the_rest_is_the_models(tiny_model: Path, alone: None) -> None:
    model = student(tiny_model).model
    before = {name: value.clone() for name, value in model.named_parameters()}
    fsdp2.shard(model, torch.device("cpu"), offload=False)
    fsdp2.check_sharded(model)
    groups = [module for module in model.modules() if isinstance(module, fsdp2.FSDPModule)]
    assert groups == [model, *model.model.layers]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, value in model.named_parameters():
        assert isinstance(value, DTensor)
        assert torch.equal(value.full_tensor(), before[name])


@pytest.mark.parametrize("strategy", ["zero3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_copies_of_gathered_weights_are_not_kept_for_the_pass(strategy: str, tiny_model: Path) -> None:
    if strategy == "zero3":
        pytest.importorskip("deepspeed")
    command = [sys.executable, "-m", "tests.support.autocast_seen", strategy, str(tiny_model)]
    fixed = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **fixed}, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert found["inside"] and not any(found["inside"])
    assert found["before"] and found["after"]


def test_whole_parameters_are_not_trained(tiny_model: Path, alone: None) -> None:
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is not sharded"):
        fsdp2.check_sharded(student(tiny_model).model)


def test_other_processes_make_the_structure_alone(tiny_model: Path, alone: None) -> None:
    whole = student(tiny_model)
    with without_weights():
        made = student(tiny_model)
        values = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        section = {
            "config": values | {"num_attention_heads": 2, "num_key_value_heads": 2},
            "tokenizer": str(tiny_model),
        }
        fresh = build_student(ModelsConfig.model_validate({"student": section}), torch.float32)
    assert all(value.is_meta for value in [*made.model.parameters(), *fresh.model.parameters()])
    described = [
        [(name, value.shape, value.dtype) for name, value in s.model.named_parameters()] for s in (made, whole)
    ]
    assert described[0] == described[1]
    assert made.eos_ids == whole.eos_ids
    assert made.model.generation_config.to_dict() == whole.model.generation_config.to_dict()
    assert not any(value.is_meta for value in student(tiny_model).model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bit_states_are_read_as_they_were_written(dtype: torch.dtype, tmp_path: Path, alone: None) -> None:
    subclass_8bit = pytest.importorskip("torchao.optim.subclass_8bit")
    fsdp2._mend_views_of_8bit_states()
    mesh = init_device_mesh("cpu", (1,))
    local = subclass_8bit.OptimState8bit.zeros((64, 64), True, 256, "cpu", dtype=dtype)
    local.copy_(torch.randn(64, 64))
    state = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=local.shape, stride=local.stride())
    assert state.to_local().dtype == dtype, "else the compiled step fails"
    torch.save(tree_map(parts._packed, {"state": {0: {"exp_avg": state}}}), tmp_path / "optimizer.pt")
    read = parts._read(tmp_path / "optimizer.pt")
    again = tree_map(lambda value: parts._unpacked(value, mesh), read, is_leaf=parts._is_packed)["state"][0]["exp_avg"]
    assert isinstance(again, DTensor) and again.placements == state.placements and again.dtype == dtype
    assert torch.equal(again.to_local().codes, local.codes) and torch.equal(again.to_local().scale, local.scale)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"optim": "adafactor"}, "training.optim"),
        ({"optim": "paged_adamw_8bit"}, "training.optim"),
        ({"compile": True}, "training.compile"),
    ],
)
def test_what_does_not_go_with_it_is_refused(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    (issue,) = fsdp2_issues(LaunchConfig(strategy="fsdp2"), TrainingConfig(**values))
    assert issue.path == named and issue.hint
    assert fsdp2_issues(LaunchConfig(), TrainingConfig(**values)) == []
    file = tmp_path / "kd.json"
    job = {"job_type": "black_box_kd_local", "dataset": {"labeled_path": "rows.json"}, "models": {"student": "s"}}
    file.write_text(json.dumps(job | {"training": values, "launch": {"strategy": "fsdp2"}}))
    with pytest.raises(ConfigError, match="fsdp2"):
        api.check_row_paths(api.validate(file))


@pytest.mark.parametrize("part", ["optimizer", "parameters"])
def test_one_part_alone_is_not_offloaded(part: str) -> None:
    with pytest.raises(ValidationError, match="fsdp2 steps where the weights are"):
        LaunchConfig.model_validate({"strategy": "fsdp2", "offload": [part]})
    both = LaunchConfig.model_validate({"strategy": "fsdp2", "offload": ["parameters", "optimizer"]})
    assert len(both.offload) == 2


def test_the_methods_that_parts_replace_are_the_trainers() -> None:
    for ours, theirs in (
        (parts.PartCheckpoints.save_model, Trainer.save_model),
        (parts.PartCheckpoints.load_model, Trainer._load_from_checkpoint),
        (parts.PartCheckpoints.save_optimizer, Trainer._save_optimizer_and_scheduler),
        (parts.PartCheckpoints.load_optimizer, Trainer._load_optimizer_and_scheduler),
    ):
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert {"device_placement", "evaluation_mode"} <= inspect.signature(Accelerator.prepare_model).parameters.keys()
    clip = inspect.signature(Accelerator.clip_grad_norm_).parameters
    assert list(inspect.signature(fsdp2.clip_gradients).parameters) == [name for name in clip if name != "self"]
    assert list(inspect.signature(Trainer._move_model_to_device).parameters) == ["self", "model", "device"]
