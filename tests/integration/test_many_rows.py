"""Training on more rows than memory holds: the same rows, batches and weights as of lists."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from easydistill.config.models import ModelsConfig
from easydistill.data.chat import ChatRenderer
from easydistill.data.messages import Message
from easydistill.data.reading import read_rows, samples
from easydistill.data.records import Sample, split_heldout
from easydistill.data.spool import Spool
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import rows as sft_rows
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.rows import TrainingRows, training_rows
from easydistill.methods.sft.trainer import train
from easydistill.methods.shared.rows import render_all
from easydistill.models.limits import Limits
from easydistill.models.student import Student, build_student


def chats(count: int) -> list[Sample]:
    """Chats of different lengths; some too long, one that the template refuses, one without an answer to learn."""
    draw = random.Random(0)

    def chat(number: int) -> Sample:
        question: Message = {"role": "user", "content": " ".join(["count"] * draw.randrange(1, 60))}
        answer: Message = {"role": "assistant", "content": " ".join(["three"] * draw.randrange(1, 12))}
        if number == 5:
            answer["weight"] = 0
        meta = {"finish_reason": "length"} if number == 6 else {}
        return Sample(f"row-{number}", (question, answer), meta)

    return [chat(number) for number in range(count)]


@pytest.fixture
def student(tiny_model: Path) -> Student:
    return build_student(ModelsConfig(student=str(tiny_model)), torch.float32)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_rows, "MOST_TOKENS_IN_MEMORY", 100)


def rendered(student: Student, directory: Path) -> TrainingRows:
    renderer = ChatRenderer(student.tokenizer, student.eos_ids)
    return training_rows(renderer, chats(40), 64, "train", directory)[0]


def facts(rows: Any) -> list[tuple[Any, ...]]:
    return [(row.id, row.ids, row.mask, row.wrote_itself) for row in rows]


def test_rows_on_disk_are_the_rows(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = ChatRenderer(student.tokenizer, student.eos_ids)
    kept, refused = render_all(renderer, chats(40), 48, "train", Limits(tokens=40_000))
    wanted = [(sample.id, row.ids, row.mask, False) for sample, row in kept]
    for most in (1 << 24, 100):
        monkeypatch.setattr(sft_rows, "MOST_TOKENS_IN_MEMORY", most)
        found, rejected = training_rows(renderer, chats(40), 48, "train", tmp_path, Limits(tokens=40_000))
        assert isinstance(found.rows, Spool) == (most == 100)
        assert facts(found.rows) == wanted
        assert rejected == refused
        assert {item.reason for item in rejected} >= {"template_refused", "no_trainable_tokens"}
        figures = found.figures
        assert (figures.rows, figures.tokens) == (len(kept), sum(len(row) for _, row in kept))
        assert figures.truncated == sum(row.truncated for _, row in kept) > 0
    assert not list(tmp_path.iterdir()), "nothing is left in the stage's directory"


def weights(student: Student, rows: Any, directory: Path, **values: Any) -> dict[str, torch.Tensor]:
    config = TrainingConfig(
        num_train_epochs=1, per_device_train_batch_size=2, learning_rate=1e-2, bf16=False, max_length=64, **values
    )
    train(student, rows, config, directory, Reporter(None, quiet=True), StopSignal())
    return {name: value.detach().clone() for name, value in student.model.state_dict().items()}


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("values", [{}, {"packing": True}, {"dataloader_num_workers": 1}], ids=str)
def test_training_from_disk_ends_in_the_same_weights(
    tiny_model: Path, student: Student, tmp_path: Path, values: dict[str, Any]
) -> None:
    found = rendered(student, tmp_path).rows
    assert isinstance(found, Spool)
    again = build_student(ModelsConfig(student=str(tiny_model)), torch.float32)
    wanted = weights(student, list(found), tmp_path / "memory", **values)
    for name, value in weights(again, found, tmp_path / "disk", **values).items():
        assert torch.equal(value, wanted[name]), name


def test_a_row_that_is_read_is_the_callers_own() -> None:
    held = Spool([TokenRow("a", [1, 2, 3], [False, True, True])])
    assert held[0].labels().tolist() == [-100, 2, 3]
    assert facts(held) == facts([held[0]])


def test_long_rows_are_read_onto_disk_and_split_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    made = [{"instruction": f"Say {number}. " * 20, "output": str(number)} for number in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    whole = read_rows(path, labelled=True).samples
    monkeypatch.setattr(samples, "MOST_TEXT_IN_MEMORY", 2000)
    part = read_rows(path, labelled=True).samples
    assert isinstance(part, Spool)
    train, heldout = split_heldout(part, 4, 0)
    assert isinstance(train, Spool)
    assert (list(train), heldout) == split_heldout(whole, 4, 0)
