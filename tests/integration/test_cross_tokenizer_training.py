"""Training with a teacher that has another tokenizer, and the whole job."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.aligned import (
    NO_SYSTEM,
    aligner_of,
    chats,
    make_teacher,
    mixed_rows,
    rows_of,
    scorer_of,
    stored,
)
from tests.support.jobs import TRAINING

import easydistill
from easydistill.config.models import ModelsConfig
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError
from easydistill.losses import LOSSES
from easydistill.methods.distil.rescore import scorer_of_store
from easydistill.methods.distil.row_loss import Distillation
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import TokenRow, collate
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.compat import fuse_loss
from easydistill.models.student import build_student
from easydistill.signals.score import RowToScore
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample, SignalStore


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Teachers by the kind of their tokenizer."""
    return cache(lambda kind: make_teacher(tmp_path_factory.mktemp(f"teacher-{kind}"), kind))


# --- learning -------------------------------------------------------------------------------------------------------


def distillation(store: SignalStore, name: str = "forward_kld", **parameters: Any) -> Distillation:
    config = LOSSES.module(name).Config(distillation_type=name, align="bytes", **({"kd_ratio": 0.6} | parameters))
    return Distillation(store, config, 1 << 22)


def token_rows(rows: Sequence[RowToScore]) -> list[TokenRow]:
    return [TokenRow(row.id, list(row.ids), list(row.learned)) for row in rows]


def step(tiny_model: Path, using: Distillation, rows: Sequence[RowToScore]) -> tuple[float, list[torch.Tensor]]:
    model = build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model
    fuse_loss(model, using.row_loss)
    items = token_rows(rows)
    count = sum(sum(row.learned) for row in rows)
    loss = model.train()(**collate([[row] for row in items], 0), **using.collate(items), num_items_in_batch=count)
    loss["loss"].backward()
    return float(loss["loss"].detach()), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_takes_a_step(tiny_model: Path, teachers: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    teacher = teachers("gpt2")
    aligner = aligner_of(tiny_model, teacher, NO_SYSTEM)
    rows = mixed_rows(aligner)
    by_rank = LOSSES.module(name).Config.by_rank
    using = distillation(stored(aligner, teacher, rows, tmp_path, by_rank=by_rank), name)
    loss, gradients = step(tiny_model, using, rows)
    assert np.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert using.means()["divergence"] > 0


def test_tokens_without_a_signal_only_learn_their_labels(
    tiny_model: Path, teachers: Callable[[str], Path], tmp_path: Path
) -> None:
    """A batch without aligned tokens takes the step of cross-entropy, scaled by its weight."""
    teacher = teachers("gpt2")
    aligner = aligner_of(tiny_model, teacher, NO_SYSTEM)
    rows = mixed_rows(aligner)
    store = stored(aligner, teacher, rows, tmp_path)
    loss, gradients = step(tiny_model, distillation(store, kd_ratio=0.75), rows[6:])
    wanted, wanted_gradients = step(tiny_model, distillation(store, kd_ratio=0.0), rows[6:])
    assert loss == pytest.approx(0.25 * wanted, rel=1e-5)
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(ours, 0.25 * theirs, rtol=1e-4, atol=1e-7)


def bucket_kl(model: Any, samples: Sequence[ScoredSample]) -> float:
    """Mean KL from teacher to student over aligned tokens: listed tokens, and one outcome for all others."""
    total, count = 0.0, 0
    for sample in samples:
        signal: TeacherSignal = sample.signal
        places = np.flatnonzero(sample.learned)[sample.present] - 1
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([list(sample.token_ids)])).logits[0, places]
        student = logits.double().log_softmax(-1).gather(1, torch.from_numpy(signal.head_ids_NK))
        rest = torch.log1p(-student.exp().sum(-1, keepdim=True))
        ours = torch.cat([student, rest], dim=1)
        theirs = torch.from_numpy(np.concatenate([signal.head_logprobs_NK, signal.log_rest_N[:, None]], 1)).double()
        total += float((theirs.exp() * (theirs - ours)).sum())
        count += len(signal)
    return total / count


def trained(tiny_model: Path, using: Distillation, rows: Sequence[RowToScore], where: Path) -> Any:
    config = TrainingConfig(
        num_train_epochs=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        bf16=False,
        max_length=256,
        logging_steps=1,
        save_steps=1000,
        optim="adamw_torch",
    )
    student = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    supervised.train(student, token_rows(rows), config, where, Reporter(None, quiet=True), StopSignal(), using)
    return student.model


def test_a_student_moves_closer_to_its_teacher_on_held_out_rows(
    tiny_model: Path, teachers: Callable[[str], Path], tmp_path: Path
) -> None:
    """Closer than before, and closer than after cross-entropy on the same rows."""
    teacher = teachers("gpt2")
    aligner = aligner_of(tiny_model, teacher)
    everything = rows_of(aligner, chats(40, seed=7))
    rows, heldout = everything[:32], everything[32:]
    samples = scorer_of(aligner, teacher).score(heldout)
    store = stored(aligner, teacher, rows, tmp_path / "signals")
    start = bucket_kl(build_student(ModelsConfig(student=str(tiny_model)), torch.float32).model, samples)
    distilled = bucket_kl(trained(tiny_model, distillation(store, kd_ratio=1.0), rows, tmp_path / "kd"), samples)
    labels = bucket_kl(trained(tiny_model, distillation(store, kd_ratio=0.0), rows, tmp_path / "ce"), samples)
    print(f"KL {start:.3f} -> {distilled:.3f} distilled, {labels:.3f} from labels")
    assert distilled < 0.7 * start
    assert distilled < 0.7 * labels


# --- the whole job ---------------------------------------------------------------------------------------------------


def job_of(folder: Path, teacher: Path, student: Path, **distil: Any) -> dict[str, Any]:
    rows = [{"instruction": chat[0]["content"], "output": chat[1]["content"]} for chat in chats(14, seed=8)]
    (folder / "labeled.json").write_text(json.dumps(rows))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "labeled.json")},
        "models": {"teacher": str(teacher), "student": str(student)},
        "distillation": {"align": "bytes", "max_seq_length": 96, "distillation_type": "forward_kld", **distil},
        "training": {name: value for name, value in TRAINING.items() if name != "max_length"},
        "evaluation": {"heldout": 4, "max_new_tokens": 8},
    }


def test_the_whole_job(tiny_model: Path, teachers: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = teachers("llama2")
    job = job_of(tmp_path, teacher, tiny_model)
    easydistill.run(job, quiet=True)
    found = json.loads((tmp_path / "run/summary.json").read_text())
    assert list(found["stages"]) == ["score", "train", "evaluate"]
    metrics = found["stages"]["score"]["metrics"]
    assert metrics["signal"] == "top_k"
    assert 0.1 < metrics["aligned_share"] < 1
    assert metrics["rows_without_signal"] == 0
    assert any("also the student's" in note for note in metrics["notes"])
    assert found["stages"]["score"]["tokens"]["scored"] < found["stages"]["train"]["metrics"]["trained_tokens"]
    store = SignalStore(next((tmp_path / "run/stages").glob("*-score")) / "signals")
    assert store.manifest.codec.most == 20
    with pytest.raises(DataError, match="cannot be verified"):
        scorer_of_store(store)

    def status(**distil: Any) -> str:
        easydistill.run(job_of(tmp_path, teacher, tiny_model, **distil), quiet=True)
        stages = json.loads((tmp_path / "run/summary.json").read_text())["stages"]
        assert stages["train"]["status"] == "done"
        return str(stages["score"]["status"])

    # Another loss over tokens reads the same signals; one that compares ranks needs its own.
    assert status(distillation_type="reverse_kld") == "skipped"
    assert status(distillation_type="uld") == "done"
    assert status(distillation_type="uld", kd_ratio=0.9) == "skipped"


def test_a_base_model_teaches_with_a_template_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "base", "gpt2")
    (teacher / "chat_template.jinja").unlink()
    job = job_of(tmp_path, teacher, tiny_model)
    with pytest.raises(ConfigError, match="no chat template"):
        easydistill.run(job, quiet=True)

    def scored(lead: str, ratio: float = 0.5) -> tuple[str, float]:
        template = tmp_path / "teacher.jinja"
        template.write_text(
            "{% for m in messages %}" + lead + "{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}" + lead + "assistant: {% endif %}"
        )
        loss = {**job["distillation"], "kd_ratio": ratio}
        easydistill.run({**job, "inference": {"template": str(template)}, "distillation": loss}, quiet=True)
        stage = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["score"]
        return stage["status"], stage["metrics"]["aligned_share"]

    status, share = scored("")
    assert status == "done" and share > 0.1
    assert scored("", 0.9)[0] == "skipped"
    # Other words around the rows are another reading of them.
    assert scored("> ")[0] == "done"
