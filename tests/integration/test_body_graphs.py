"""Recorded layers give the plain training, whatever the shapes; what cannot be recorded is trained as ever.

CUDA graphs need a GPU. Everything around them is tried here with a recorder that runs the passes again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_supervised import rows, weights

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.body_graphs import BodyGraphs, draws_random_numbers
from easydistill.models.student import build_student


class Again:
    """Runs the pass again, where a GPU would replay its kernels."""

    def warm_up(self, run: Callable[[], None]) -> None:
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return torch.enable_grad()(run)


class Refusing(Again):
    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Stale(Again):
    """What it recorded is not what was run."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return lambda: None


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text, *args, **kwargs: found.append(text))
    return found


def run(
    tiny_model: Path,
    where: Path,
    made: list[TokenRow],
    monkeypatch: pytest.MonkeyPatch,
    recorder: type[Again] | None,
    room: int = 1 << 30,
    **values: Any,
) -> tuple[dict[str, torch.Tensor], BodyGraphs | None]:
    """The trained weights, and what recorded the layers."""
    base: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    base |= {"learning_rate": 1e-3, "bf16": False, "max_length": 256, "save_steps": 100, "logging_steps": 1}
    student = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    kept: list[BodyGraphs] = []

    def recording(model: Any, config: Any, arguments: Any, reporter: Reporter) -> BodyGraphs | None:
        if recorder is None:
            return None
        kept.append(BodyGraphs(model, reporter.say, recorder, room))
        return kept[0]

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "_graphs", recording)
        # Both with batches of few shapes.
        patch.setattr(supervised, "wants_compiling", lambda *args: False)
        config = TrainingConfig(**(base | values))
        supervised.train(student, made, config, where, Reporter(None, quiet=True), StopSignal())
    return weights(student), kept[0] if kept else None


@pytest.mark.parametrize("values", [{}, {"lora": LoraConfig(r=4)}, {"gradient_accumulation_steps": 3}])
def test_recorded_layers_train_as_plain_ones(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], values: dict[str, Any]
) -> None:
    some = rows(20, longest=250)
    plain, _ = run(tiny_model, tmp_path / "plain", some, monkeypatch, None, **values)
    # Longer batches without anything more to learn round the same in float32, row by row.
    recorded, graphs = run(tiny_model, tmp_path / "recorded", some, monkeypatch, Again, **values)
    assert graphs is not None and len(graphs.shapes) >= 2 and not graphs.refused
    assert all(tokens % 64 == 0 for _, tokens in graphs.shapes)
    start = weights(build_student(ModelsConfig(student=str(tiny_model)), torch.float32))
    assert max(float((value - start[name]).abs().max()) for name, value in plain.items()) > 1e-3
    for name, value in plain.items():
        torch.testing.assert_close(value, recorded[name], rtol=0, atol=2e-4, msg=name)


def test_steps_of_recorded_and_other_micro_batches_have_the_gradients_of_the_body(tiny_model: Path) -> None:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model.train()
    graphs = BodyGraphs(model, lambda text: None, Again, 1 << 30)
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(500, (2, width), generator=draw) for width in (8, 8, 8, 16, 16, 8, 24, 16)]
    weigh = [torch.randn(2, ids.shape[1], model.config.hidden_size, generator=draw) for ids in batches]

    def gradients(hidden_of: Callable[[torch.Tensor], Any], which: list[int]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for at in which:
            (hidden_of(batches[at]) * weigh[at]).sum().backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    def plain(ids: torch.Tensor) -> torch.Tensor:
        return model.model(input_ids=ids, use_cache=False).last_hidden_state

    def replayed(ids: torch.Tensor) -> torch.Tensor:
        found = graphs(ids)
        return plain(ids) if found is None else found

    # Recorded at the start, in the middle and at the end of a step, beside a shape that never is.
    for which in ([0, 1], [2, 3], [4, 5, 6], [6, 7], [0, 1, 2]):
        wanted = gradients(plain, which)
        found = gradients(replayed, which)
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert sorted(graphs.shapes) == [(2, 8), (2, 16), (2, 24)]


def test_a_step_without_gradients_is_not_recorded(tiny_model: Path) -> None:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    graphs = BodyGraphs(model, lambda text: None, Again, 1 << 30)
    with torch.no_grad():
        assert [graphs(torch.zeros(1, 8, dtype=torch.long)) for _ in range(3)] == [None] * 3
    assert not graphs.shapes


def test_room_limits_the_recordings(tiny_model: Path) -> None:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    graphs = BodyGraphs(model, lambda text: None, Again, 1)
    for width in (8, 8, 16, 16):
        graphs(torch.zeros(1, width, dtype=torch.long))
    assert graphs.shapes == [(1, 8)]


@pytest.mark.parametrize(("recorder", "reason"), [(Refusing, "capturing more"), (Stale, "other numbers")])
def test_what_cannot_be_recorded_is_trained_as_ever(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    recorder: type[Again],
    reason: str,
) -> None:
    some = rows(12, longest=60)
    plain, _ = run(tiny_model, tmp_path / "plain", some, monkeypatch, None)
    found, graphs = run(tiny_model, tmp_path / "found", some, monkeypatch, recorder)
    assert graphs is not None and graphs.refused
    (note,) = (line for line in said if "CUDA graphs" in line)
    assert reason in note
    for name, value in plain.items():
        torch.testing.assert_close(value, found[name], rtol=0, atol=2e-4, msg=name)


def test_a_machine_without_a_gpu_says_so_if_asked(tiny_model: Path, tmp_path: Path, said: list[str]) -> None:
    student = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    config = TrainingConfig(max_steps=1, cuda_graphs=True, bf16=False)
    supervised.train(student, rows(2), config, tmp_path, Reporter(None, quiet=True), StopSignal())
    assert any("not recorded as CUDA graphs, because here is no CUDA device" in line for line in said)


def test_dropout_draws_random_numbers(tiny_model: Path) -> None:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    assert not draws_random_numbers(model)
    model.config.attention_dropout = 0.1
    assert draws_random_numbers(model)
    model.config.attention_dropout = 0.0
    model.model.layers[0].add_module("extra", torch.nn.Dropout(0.2))
    assert draws_random_numbers(model)
