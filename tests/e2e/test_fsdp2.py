"""Training with parameters in parts (`fully_shard`): the same student as with whole copies."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.test_launch import alone, assert_all_gone, curve, sft_job, wait_for_step, weights
from tests.support.jobs import run_here, start, write_config
from transformers import AutoModelForCausalLM

__all__ = ["alone"]


def fsdp2_job(folder: Path, student: Path, processes: int = 2, batch: int = 2, **training: Any) -> dict[str, Any]:
    job = sft_job(folder, student, processes, batch, **training)
    job["launch"]["strategy"] = "fsdp2"
    return job


def assert_same_student(ours: Path, theirs: Path, bound: float = 1e-4) -> None:
    one, other = (load_file(folder / "run/student/model.safetensors") for folder in (ours, theirs))
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(other[name].float().abs().max())
        assert torch.allclose(value.float(), other[name].float(), rtol=bound, atol=bound * scale), name


def test_parts_learn_what_whole_copies_learn(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    code, out = run_here(write_config(tmp_path, fsdp2_job(tmp_path, tiny_model)))
    assert code == 0, out
    assert len(curve(tmp_path)) == len(curve(alone))
    for ours, one in zip(curve(tmp_path), curve(alone), strict=True):
        assert ours == pytest.approx(one, rel=1e-4)
    assert_same_student(tmp_path, alone)


@pytest.fixture(scope="module")
def in_two(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run in two processes, long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("in-two")
    code, out = run_here(write_config(folder, fsdp2_job(folder, tiny_model, num_train_epochs=6)))
    assert code == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_it_resumes(victim: int, in_two: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, fsdp2_job(tmp_path, tiny_model, num_train_epochs=6))
    run = start(config)
    ranks = wait_for_step(run, tmp_path, 4)
    os.kill(ranks[victim], signal.SIGKILL)
    err, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"process {victim} of the stage was killed by SIGKILL" in err
    assert_all_gone(ranks)
    code, out = run_here(config)
    assert code == 0, out
    assert weights(tmp_path) == weights(in_two)


@pytest.mark.slow
def test_checkpoints_of_another_strategy_or_number_do_not_go_on(tiny_model: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, fsdp2_job(tmp_path, tiny_model, num_train_epochs=6))
    run = start(config)
    wait_for_step(run, tmp_path, 4)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    code, out = run_here(config, "--set", "launch.processes=1")
    assert code == 2
    assert "2 processes wrote" in out and "set launch.processes=2" in out
    code, out = run_here(config, "--set", "launch.strategy=ddp")
    assert code == 2
    assert "written under fsdp2" in out and "set launch.strategy=fsdp2" in out
    assert any((tmp_path / "run/stages").rglob("whole.json"))


def untied(tied: Path, folder: Path) -> Path:
    """The tiny model with an output layer of its own."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tied)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)
    model.save_pretrained(folder / "untied")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tied / name, folder / "untied" / name)
    return folder / "untied"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "training"),
    [
        ({"offload": ["optimizer", "parameters"]}, {}),
        ({}, {"lora": {"r": 4}, "gradient_checkpointing": True}),
        ({}, {"packing": True}),
    ],
    ids=["offload", "lora", "packing"],
)
def test_variants_learn_what_one_process_learns(
    launch: dict[str, Any], training: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    together, one = tmp_path / "together", tmp_path / "one"
    for folder in (together, one):
        folder.mkdir()
    job = fsdp2_job(together, tiny_model, **training)
    job["launch"] |= launch
    for folder, config in ((together, job), (one, sft_job(one, tiny_model, 1, 4, **training))):
        code, out = run_here(write_config(folder, config))
        assert code == 0, out
    assert len(curve(together)) == len(curve(one)) > 1
    for ours, theirs in zip(curve(together), curve(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert_same_student(together, one)


@pytest.mark.slow
def test_an_output_layer_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    student = untied(tiny_model, tmp_path)
    together, one = tmp_path / "together", tmp_path / "one"
    for folder in (together, one):
        folder.mkdir()
    # Adam divides by the size of a gradient: where that is rounding alone, so would be the update.
    settings = {"adam_epsilon": 1e-5}
    supervised = {"distillation": {"kd_ratio": 0.0, "distillation_type": "forward_kld", "max_seq_length": 96}}
    jobs = [(together, fsdp2_job(together, student, **settings)), (one, sft_job(one, student, 1, 4, **settings))]
    for folder, job in jobs:
        code, out = run_here(write_config(folder, job | supervised))
        assert code == 0, out
    for ours, theirs in zip(curve(together), curve(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert "lm_head.weight" in load_file(together / "run/student/model.safetensors")
    assert_same_student(together, one)
