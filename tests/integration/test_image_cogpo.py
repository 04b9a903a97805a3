"""Pairs for one student of problems with images: every question shows the images of its problem."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import GREEN, RED, looking, picture, sent_images
from tests.support.vision_models import vision_model

import easydistill
from easydistill.contracts.operator import Ask, Reply, answer_with
from easydistill.data.messages import images_of, text_of
from easydistill.data.records import Sample
from easydistill.synthesis.operators import cogpo
from easydistill.synthesis.tools import Tools

CHAIN = "There are three red ones, as is seen. " * 3 + "So it is \\boxed{3}."
SHOWN = {"alpha": ("sha256:1",), "beta": ("sha256:2", "sha256:3"), "gamma": ()}


def said(text: str) -> str:
    """Teacher and critic, to whom the teacher's own chain is too hard, so that it is rewritten."""
    if "Choose one label" in text or "<label>" in text:
        return f"<label>{'hard' if 'There are three' in text else 'medium'}</label>"
    if "answer: the final answer alone" in text:
        return "<answer>3</answer>"
    if "rewritten solution" in text:
        return "<thought>Three red ones are seen: \\boxed{3}</thought>"
    return CHAIN


def test_every_question_shows_the_images_of_its_problem() -> None:
    rows = [
        Sample(
            name,
            (
                {
                    "role": "user",
                    "content": [*parts, {"type": "text", "text": f"Problem {name}: how many?"}]
                    if parts
                    else f"Problem {name}: how many?",
                },
            ),
            {"reference": "3"},
        )
        for name, images in SHOWN.items()
        for parts in [[{"type": "image", "image": image} for image in images]]
    ]
    asked: list[Ask] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        asked.extend(asks)
        texts = [(ask.role, text_of(ask.messages[-1])) for ask in asks]
        return [
            Reply("I think it is \\boxed{7}." if role == "student" else said(text), finish_reason="stop")
            for role, text in texts
        ]

    config = cogpo.Config(votes=1, student_samples=2)
    found = answer_with(cogpo.run(config, rows, Tools(config)), answer)
    assert {row.meta["source"] for row in found.accepted} == SHOWN.keys(), found.rejected
    for row in found.accepted:
        assert row.images == SHOWN[row.meta["source"]]
    for row in found.also[cogpo.SFT]:
        assert row.images == SHOWN[row.id]
    for ask in asked:
        name = next(name for name in SHOWN if f"Problem {name}" in text_of(ask.messages[-1]))
        assert images_of(*ask.messages) == SHOWN[name]
    assert Counter(ask.role for ask in asked).keys() == {"teacher", "judge", "student"}


def _text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@pytest.mark.slow
def test_both_trainings_see_the_images(tmp_path: Path) -> None:
    for name, colour in (("r.png", RED), ("g.png", GREEN)):
        (tmp_path / name).write_bytes(picture(colour, (16, 16)))
    rows: list[dict[str, Any]] = [
        {"instruction": f"Problem {n}: how many?", "images": ["rg"[n % 2] + ".png"], "reference": "3"} for n in range(6)
    ]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    with looking() as server:
        server.answers = lambda body: said(_text(body))
        result = easydistill.run(
            {
                "job_type": "cogpo",
                "output_dir": str(tmp_path / "run"),
                "dataset": {"instruction_path": str(tmp_path / "in.json")},
                "inference": {"base_url": server.url, "model": "m"},
                "models": {"student": str(vision_model("qwen2_5_vl"))},
                "student_inference": {"max_new_tokens": 8},
                "synthesis": {"votes": 1, "student_samples": 1},
                "sft": {"num_train_epochs": 1, "max_length": 448},
                "training": {"num_train_epochs": 1, "max_length": 448},
                "evaluation": {"heldout": 1},
            },
            quiet=True,
        )
        assert result.summary["stages"]["train-1"]["rows"]["left"] > 0
        for body in server.bodies:
            assert len(sent_images(body)) == 1
