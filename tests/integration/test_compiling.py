"""Compiled layers give the steps of plain ones, are not compiled again and again, and are gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_supervised import rows, weights
from tests.support.killed import killed_at

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared import compiling
from easydistill.methods.shared.compiling import CompiledLayers, wants_compiling
from easydistill.models.student import build_student

# The compiler warns about the machine that it runs on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text, *args, **kwargs: found.append(text))
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[CompiledLayers]:
    """The compiled layers of the trainings that a test runs."""
    found: list[CompiledLayers] = []

    class Kept(CompiledLayers):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr(supervised, "CompiledLayers", Kept)
    return found


def run(tiny_model: Path, where: Path, made: list[TokenRow], **values: Any) -> dict[str, torch.Tensor]:
    base: dict[str, Any] = {"num_train_epochs": 2, "max_tokens_per_batch": 512, "gradient_accumulation_steps": 2}
    base |= {"learning_rate": 1e-3, "bf16": False, "max_length": 256, "save_steps": 2, "logging_steps": 1}
    base |= {"compile": True, "optim": "adamw_torch"}
    student = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    supervised.train(student, made, TrainingConfig(**(base | values)), where, Reporter(None, quiet=True), StopSignal())
    assert all(getattr(module, "_compiled_call_impl", None) is None for module in student.model.modules())
    return weights(student)


@pytest.fixture
def as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are found and counted as ever; what is compiled runs as it is, without the seconds of a compiler."""
    monkeypatch.setattr(compiling, "inductor", lambda graph, inputs: graph)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"packing": True, "gradient_checkpointing": True, "per_device_train_batch_size": 2},
        {"lora": LoraConfig(r=4)},
    ],
)
def test_an_epoch_of_mixed_lengths_gives_the_plain_weights_and_is_compiled_once(
    tiny_model: Path, tmp_path: Path, said: list[str], made: list[CompiledLayers], values: dict[str, Any]
) -> None:
    some = rows(40, longest=250)
    # Plain gradient descent: Adam would magnify rounding to steps of the size of the learning rate.
    kind: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    values = {"max_tokens_per_batch": None, "per_device_train_batch_size": 3, **kind, **values}
    plain = run(tiny_model, tmp_path / "plain", some, compile=False, **values)
    assert not made
    compiled = run(tiny_model, tmp_path / "compiled", some, **values)
    (layers,) = made
    start = weights(build_student(ModelsConfig(student=str(tiny_model)), torch.float32))
    assert max(float((value - start[name]).abs().max()) for name, value in plain.items()) > 5e-3
    # For several rows and for a single one; with adapters also for the first layer, whose input takes no gradient. Not
    # for each of the layers and lengths.
    assert 1 <= layers.compilations <= 5
    assert any("Compiling" in line for line in said) and any("compiled in" in line for line in said)
    assert not any("more times" in line for line in said)
    for name, value in plain.items():
        torch.testing.assert_close(value, compiled[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_batches_by_tokens_are_compiled_once_and_resume_bit_for_bit(
    tiny_model: Path, tmp_path: Path, made: list[CompiledLayers], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = rows(40, longest=250)
    whole = run(tiny_model, tmp_path / "whole", some)
    assert 1 <= made[0].compilations <= 3
    with killed_at(monkeypatch, 5):
        run(tiny_model, tmp_path / "killed", some)
    resumed = run(tiny_model, tmp_path / "killed", some)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.usefixtures("as_written")
def test_every_training_of_a_process_is_compiled(
    tiny_model: Path, tmp_path: Path, said: list[str], made: list[CompiledLayers]
) -> None:
    """The compiler's limit holds for a function in a process; a training must not inherit what others used of it."""
    some = rows(6, longest=60)
    for index in range(2):
        with torch._dynamo.config.patch(recompile_limit=1):
            run(tiny_model, tmp_path / str(index), some, num_train_epochs=1, save_steps=99)
    assert [layers.compilations for layers in made] == [1, 1]
    assert not any("not compiled" in line for line in said)


@pytest.mark.usefixtures("as_written")
def test_layers_that_the_compiler_leaves_alone_are_told(
    tiny_model: Path, tmp_path: Path, said: list[str], made: list[CompiledLayers]
) -> None:
    with torch.compiler.set_stance("force_eager"):
        run(tiny_model, tmp_path, rows(8, longest=60))
    assert made[0].compilations == 0 and not made[0].active
    assert sum("not compiled" in line for line in said) == 1
    assert not any("compiled in" in line for line in said)


def test_a_compiler_that_fails_is_told_and_done_without(
    tiny_model: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = rows(16, longest=60)
    plain = run(tiny_model, tmp_path / "plain", some, compile=False)

    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(compiling, "inductor", broken)
    found = run(tiny_model, tmp_path / "broken", some)
    assert any("not compiled" in line and "no compiler on this machine" in line for line in said)
    for name, value in plain.items():
        torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize(("many", "full"), [(2, False), (100, True)])
def test_layers_that_are_compiled_again_and_again_are_told_once(
    tiny_model: Path,
    tmp_path: Path,
    said: list[str],
    made: list[CompiledLayers],
    monkeypatch: pytest.MonkeyPatch,
    many: int,
    full: bool,
) -> None:
    """With code for one shape at a time, for lengths that differ by one."""
    monkeypatch.setattr(compiling, "_MANY", many)
    monkeypatch.setattr(supervised, "LENGTH_MULTIPLE", 1)
    kept = supervised.CompiledLayers
    fixed = lambda *args, dynamic, **kwargs: kept(*args, dynamic=False, **kwargs)  # noqa: E731
    monkeypatch.setattr(supervised, "CompiledLayers", fixed)
    some = rows(12, longest=60)
    run(tiny_model, tmp_path, some, max_tokens_per_batch=None, max_length=64, gradient_accumulation_steps=1)
    (told,) = (line for line in said if "more times" in line)
    assert ("run uncompiled" in told) is full
    assert made[0].compilations == torch._dynamo.config.recompile_limit


def test_auto_is_for_long_trainings_on_gpus() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert wants_compiling("auto", gpu, 1000) and not wants_compiling("auto", gpu, 999)
    assert not wants_compiling("auto", cpu, 10**6)
    assert wants_compiling(True, cpu, 1) and not wants_compiling(False, gpu, 10**6)
