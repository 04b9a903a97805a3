"""8-bit optimisers and bfloat16 weights: they learn, resume bit for bit, and the student is saved as ever."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.integration.test_supervised import rows, weights
from tests.support.killed import killed_at

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig, TrainerConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import TokenRow, collate
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss
from easydistill.methods.shared.student import optimiser_issues
from easydistill.models.student import build_student

# Both libraries warn when they are imported or first used, about what is not ours: missing kernels, hashes of caches.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LIBRARY = {"adamw_8bit": "torchao", "paged_adamw_8bit": "bitsandbytes"}


def installed(optim: str) -> None:
    pytest.importorskip(LIBRARY[optim])


def run(
    tiny_model: Path, where: Path, made: list[TokenRow], dtype: str = "float32", **values: Any
) -> dict[str, torch.Tensor]:
    base: dict[str, Any] = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    base |= {"learning_rate": 1e-2, "max_length": 64, "save_steps": 2, "logging_steps": 1, "weights": dtype}
    base |= {"bf16": "auto" if dtype == "bfloat16" else False}
    student = build_student(ModelsConfig(student=str(tiny_model)), getattr(torch, dtype))
    config = TrainingConfig(**(base | values))
    supervised.train(student, made, config, where, Reporter(None, quiet=True), StopSignal())
    assert {value.dtype for value in student.model.state_dict().values()} == {getattr(torch, dtype)}
    return weights(student)


def loss_of(tiny_model: Path, found: dict[str, torch.Tensor] | None, made: list[TokenRow]) -> float:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    if found is not None:
        model.load_state_dict({name: value.float() for name, value in found.items()})
    fuse_loss(model, cross_entropy_loss(1 << 20))
    return float(model(**collate([[row] for row in made], pad=0))["loss"].detach())


@pytest.mark.parametrize(
    ("optim", "dtype"), [("adamw_8bit", "float32"), ("adamw_8bit", "bfloat16"), ("paged_adamw_8bit", "float32")]
)
def test_a_killed_training_learns_and_ends_in_the_same_weights_bit_for_bit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str, dtype: str
) -> None:
    installed(optim)
    made = rows(24)
    whole = run(tiny_model, tmp_path / "whole", made, dtype, optim=optim)
    assert loss_of(tiny_model, whole, made) < 0.9 * loss_of(tiny_model, None, made)
    with killed_at(monkeypatch, 5):
        run(tiny_model, tmp_path / "killed", made, dtype, optim=optim)
    resumed = run(tiny_model, tmp_path / "killed", made, dtype, optim=optim)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_updates_too_small_for_bfloat16_count_on_average(tiny_model: Path, tmp_path: Path) -> None:
    """At this learning rate no update reaches half of the distance between two bfloat16 numbers of a weight's size."""
    installed("adamw_8bit")
    made = rows(24)
    kind: dict[str, Any] = {"optim": "adamw_8bit", "learning_rate": 5e-5, "lr_scheduler_type": "constant"}
    kind |= {"warmup_ratio": 0.0, "weight_decay": 0.0, "num_train_epochs": 10}
    exact = run(tiny_model, tmp_path / "a", made, "float32", **kind)
    rounded = run(tiny_model, tmp_path / "b", made, "bfloat16", **kind)
    start = weights(build_student(ModelsConfig(student=str(tiny_model)), torch.float32))
    name = max(start, key=lambda each: start[each].numel())
    moved, wanted = (found[name].float() - start[name].bfloat16().float() for found in (rounded, exact))
    along = float((moved * wanted).sum() / wanted.square().sum())
    assert along == pytest.approx(1, abs=0.15)


def test_adapters_stay_in_float32_on_bfloat16_weights(tiny_model: Path, tmp_path: Path) -> None:
    made = rows(24)
    found = run(tiny_model, tmp_path, made, "bfloat16", lora=LoraConfig(r=8), optim="adamw_torch", learning_rate=3e-2)
    assert loss_of(tiny_model, found, made) < loss_of(tiny_model, None, made) - 0.05


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"weights": "bfloat16"}, "do not learn with adamw_torch_fused"),
        ({"weights": "bfloat16", "optim": "paged_adamw_8bit"}, "do not learn"),
        ({"weights": "bfloat16", "optim": "adamw_8bit", "bf16": False}, "training.bf16 is false"),
    ],
)
def test_what_cannot_learn_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TrainingConfig(**values)


def test_what_installed_libraries_say_goes_to_the_log(tmp_path: Path) -> None:
    """In a training, accelerate, PEFT and transformers import these wherever they are installed."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from easydistill.engine.run_directory import RunDirectory\nfrom easydistill.engine.secrets import Redactor\n"
        "with RunDirectory(Path(sys.argv[1])).logging(Redactor()):\n"
        "    import deepspeed, torchao, bitsandbytes.backends.cpu.ops\n"
        "    from deepspeed.utils import logger\n    logger.warning('a remark')\n"
    )
    for name in ("deepspeed", "torchao", "bitsandbytes"):
        pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert not done.stdout and "Failed to load" not in done.stderr
    log = (tmp_path / "log.txt").read_text()
    assert "DeepSpeed: a remark" in log


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_a_missing_library_is_named_with_its_extra(optim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == LIBRARY[optim] else found(name))
    (issue,) = optimiser_issues(TrainerConfig(optim=optim))
    assert LIBRARY[optim] in issue.problem and "[optim]" in str(issue.hint)
    assert not optimiser_issues(TrainerConfig())
