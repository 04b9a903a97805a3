"""A curriculum over rows with images: all three models see them, and so does the training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import BLUE, GREEN, RED, LookingServer, looking, picture, sent_images
from tests.support.vision_models import vision_model

import easydistill
from easydistill.contracts.operator import Ask, Reply, answer_with
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.store import digest_of
from easydistill.data.messages import images_of, text_of
from easydistill.data.reading import read_samples
from easydistill.data.records import Sample
from easydistill.synthesis.operators import tapir
from easydistill.synthesis.tools import Tools

PICTURES = {"r.png": picture(RED, (16, 16)), "g.png": picture(GREEN, (16, 16)), "b.png": picture(BLUE, (16, 16))}
WORDS = ("harbour", "lantern", "violin", "granite", "meadow", "saffron", "glacier", "compass", "orchard", "walnut")


def said(text: str, number: int) -> str:
    """Teacher and judge: the teacher's answers are long, the student's are worse."""
    if "[First answer]" in text:
        first = text.partition("[First answer]")[2].partition("[Second answer]")[0]
        return "<first>9</first><second>2</second>" if "teacher" in first else "<first>2</first><second>9</second>"
    if "[Labels]" in text:
        return "<label>Others</label>"
    if "Write one new instruction" in text:
        words = " ".join(WORDS[(number * step + step) % 10] + WORDS[number // step % 10] for step in (1, 3, 7))
        return f"<instruction>Please look for {words} now.</instruction>"
    return f"The teacher says {text[:30]} at some length."


@pytest.mark.parametrize("several", [False, True])
def test_every_question_of_a_round_shows_the_images_of_its_row(several: bool) -> None:
    shown = {"a": ("sha256:1",), "b": ("sha256:2", "sha256:3") if several else ("sha256:2",), "c": ()}
    rows = [
        Sample(
            name,
            (
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": image} for image in images),
                        {"type": "text", "text": f"Row {name}: what is it?"},
                    ],
                }
                if images
                else {"role": "user", "content": f"Row {name}: what is it?"},
            ),
        )
        for name, images in shown.items()
    ]
    asked: list[Ask] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        asked.extend(asks)
        return [Reply(said(text_of(ask.messages[-1]), len(asked)), finish_reason="stop") for ask in asks]

    config = tapir.Config(expansions=1, delta=2, styles={"Others": "cot"}, check_task=True)
    student = "The student says nothing."
    found = answer_with(
        tapir.run(config, rows, Tools(config)),
        lambda asks: [
            Reply(student, finish_reason="stop") if ask.role == "student" else reply
            for ask, reply in zip(asks, answer(asks), strict=True)
        ],
    )
    assert not [row for row in found.rejected if row.reason not in {"malformed_reply"}]
    new = [row for row in found.accepted if "expanded_from" in row.meta]
    old = [row for row in found.accepted if "expanded_from" not in row.meta]
    assert {row.images for row in [*new, *old]} <= set(shown.values())
    for row in new:
        assert row.images == shown[row.meta["expanded_from"]]
    for ask in asked:
        text = text_of(ask.messages[-1])
        name = next((name for name in shown if f"Row {name}" in text), None)
        if name is not None:
            assert images_of(*ask.messages) == shown[name], text
        assert "<image>" not in text
    roles = Counter((ask.role, bool(images_of(*ask.messages))) for ask in asked)
    assert all(roles[role, True] for role in ("teacher", "judge", "student"))


@pytest.fixture
def server() -> Iterator[LookingServer]:
    with looking() as made:
        made.answers = lambda body: said(_text(body), len(made.bodies))
        yield made


def _text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@pytest.mark.slow
def test_a_round_trains_a_student_that_sees(tmp_path: Path, server: LookingServer) -> None:
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
    names = list(PICTURES)
    rows: list[dict[str, Any]] = [
        {"id": f"row-{n}", "instruction": f"What is number {n} of these?", "images": [names[n % 3]]} for n in range(8)
    ]
    rows += [{"id": f"text-{n}", "instruction": f"Say the number {n}."} for n in range(3)]
    (tmp_path / "seeds.json").write_text(json.dumps(rows))
    config = {
        "job_type": "tapir",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": str(tmp_path / "seeds.json")},
        "inference": {"base_url": server.url, "model": "m"},
        "models": {"student": str(vision_model("qwen2_5_vl"))},
        "student_inference": {"max_new_tokens": 4},
        "curriculum": {"rounds": 1, "reasoning_weight": 1},
        "training": {"num_train_epochs": 1, "max_length": 384, "save_steps": 50},
        "evaluation": {"heldout": 2, "max_new_tokens": 2},
    }
    assert easydistill.run(config, quiet=True).exit_code == 0
    images = {f"number {row['id'][4:]} of": PICTURES[row["images"][0]] for row in rows if "images" in row}
    for body in server.bodies:
        mark = next((mark for mark in images if mark in _text(body)), None)
        assert sent_images(body) == ([images[mark]] if mark else []) or mark is None
    stage = next(tmp_path.glob("run/stages/*-curriculum-1"))
    made, _ = read_samples(stage / "labeled.json", labelled=True, images=ImageReader(ImageStore(tmp_path / "read")))
    own = {row["id"]: tuple(digest_of(PICTURES[name]) for name in row.get("images", ())) for row in rows}
    assert any(row.images for row in made) and any("expanded_from" in row.meta for row in made)
    for row in made:
        assert row.images == own[row.meta.get("expanded_from", row.id)]
    asked = len(server.bodies)
    (stage / "manifest.json").unlink()
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert len(server.bodies) == asked
    for path in (tmp_path / "run").rglob("*.jsonl"):
        assert b";base64," not in path.read_bytes()
