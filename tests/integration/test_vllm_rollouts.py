"""The student's answers from vLLM: its present weights are used, adapters included, and training goes on as before."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.integration.test_on_policy_kd import config, model
from tests.support.jobs import ROOT

from easydistill.config.training import LoraConfig
from easydistill.errors import ConfigError
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.vllm_rollouts import VllmWriter, plain_weights

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


# --- weights --------------------------------------------------------------------------------------------------------


def test_the_weights_have_the_names_of_the_files() -> None:
    own = model(0)
    found = dict(plain_weights(own))
    assert found.keys() == own.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in own.state_dict().items())


def test_adapters_are_added_and_the_model_stays_as_it_is() -> None:
    own = model(0)
    names = own.state_dict().keys()
    adapted = with_adapters(own, config(lora=LoraConfig(r=2)))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(1))
    before = [value.detach().clone() for value in adapted.parameters()]
    found = dict(plain_weights(adapted))
    assert all(map(torch.equal, before, adapted.parameters()))
    assert found.keys() == names
    merged = adapted.merge_and_unload().state_dict()
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value)


# --- config ---------------------------------------------------------------------------------------------------------


def test_the_engine_is_part_of_the_identity_and_its_memory_is_not() -> None:
    plain = OnPolicyConfig()
    assert "rollouts" not in plain.identity()
    by_vllm = OnPolicyConfig(rollouts="vllm")
    assert by_vllm.identity() == {**plain.identity(), "rollouts": "vllm"}
    assert OnPolicyConfig(rollouts="vllm", vllm_gpu_memory_utilization=0.5).identity() == by_vllm.identity()


def test_memory_of_an_engine_that_is_not_used_is_refused() -> None:
    with pytest.raises(ValidationError, match="no effect without vLLM"):
        OnPolicyConfig(vllm_gpu_memory_utilization=0.5)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    student: Any = None
    with pytest.raises(ConfigError, match="several train"):
        VllmWriter(student, 64, 0.3)


# --- the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests/support/vllm_student.py` has seen."""
    folder = tmp_path_factory.mktemp("vllm-student")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm_student", str(smollm), str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    assert line is not None, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return seen


@pytest.mark.vllm
@needs_vllm
def test_answers_come_from_the_weights_that_were_loaded_last(found: dict[str, Any]) -> None:
    # vLLM computes in bfloat16 where the processor is fast in it; the model itself in float32.
    assert min(found["agreement"]) > 0.85
    assert found["agreement_with_others"] < 0.5
    assert found["agreement_with_adapters"] > 0.7 > 0.5 > found["agreement_without_adapters"]
    assert found["adapters_untouched"]


@pytest.mark.vllm
@needs_vllm
def test_answers_depend_on_seed_and_step_and_nothing_else(found: dict[str, Any]) -> None:
    assert found["same_step_same_answers"]
    assert found["other_step_other_answers"]
    assert found["random_state_kept"]
    assert found["ends"]
    assert found["longest"] <= 12
    assert found["mean_lengths"][0] == pytest.approx(found["mean_lengths"][1], abs=0.5)


@pytest.mark.vllm
@needs_vllm
def test_both_objectives_train_with_it(found: dict[str, Any]) -> None:
    assert found["trains"]
    assert found["trains_twice_alike"]
    assert found["jsd_steps"] == 6
    assert {"weights", "rollouts", "teacher", "update"} <= set(found["phases"])
    assert not found["process_group_left"]
