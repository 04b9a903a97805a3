"""Chains of thought over images: the judge is shown all of a row's images, in their places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import BLUE, GREEN, RED, LookingServer, looking, picture, sent_images

import easydistill
from easydistill import api
from easydistill.asking.answers import JOURNAL
from easydistill.contracts.operator import Ask
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.reader import NOT_SEEN
from easydistill.data.images.store import digest_of
from easydistill.data.reading import read_samples
from easydistill.jobs import stages_of
from easydistill.synthesis.images import with_images

CHAIN = "The first is red. The second is another colour. So they differ: yes."
COLOURS = {"r.png": RED, "g.png": GREEN, "b.png": BLUE}


@pytest.fixture
def server() -> Iterator[LookingServer]:
    with looking() as made:
        # The scores tell what was seen: how many images, and whether the last of them is blue.
        made.says = lambda seen: f"<rv>{len(seen)}</rv><cd>{9 if seen[-1:] == [BLUE] else 0}</cd><correct>1</correct>"
        yield made


def row(name: str, *images: str, text: str = "<image> and <image>: do they differ?") -> dict[str, Any]:
    return {"id": name, "instruction": text, "output": CHAIN, **({"images": list(images)} if images else {})}


def job(folder: Path, url: str, rows: list[dict[str, Any]], **sections: Any) -> dict[str, Any]:
    for name, colour in COLOURS.items():
        (folder / name).write_bytes(picture(colour))
    (folder / "in.json").write_text(json.dumps(rows))
    return {
        "job_type": "mmcot_eval_api",
        "output_dir": str(folder / "run"),
        "dataset": {"input_path": str(folder / "in.json"), "output_path": str(folder / "out.json")},
        "inference": {"base_url": url, "model": "m", "api_key": "k", "max_new_tokens": 1024},
        **sections,
    }


def scores(folder: Path) -> dict[str, tuple[int, int]]:
    rows = json.loads((folder / "out.json").read_text())
    return {each["id"]: (each["rv"], each["cd"]) for each in rows}


def test_every_image_of_a_row_is_shown_and_not_the_first_alone(tmp_path: Path, server: LookingServer) -> None:
    rows = [
        row("green", "r.png", "g.png"),
        row("blue", "r.png", "b.png"),
        row("text", text="Are red and blue other colours?"),
        row("blue again", "r.png", "b.png"),
    ]
    assert easydistill.run(job(tmp_path, server.url, rows), quiet=True).exit_code == 0
    assert scores(tmp_path) == {"green": (2, 0), "blue": (2, 9), "text": (0, 0), "blue again": (2, 9)}
    # Rows that differ in their second image alone are two requests, and equal rows are one.
    assert len(server.bodies) == 3
    by_images = {tuple(sent_images(body)): body["messages"][0]["content"] for body in server.bodies}
    content = by_images[picture(RED), picture(BLUE)]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "text"]
    assert content[0]["text"].endswith("[Problem]\n") and content[2]["text"] == " and "
    assert content[4]["text"].startswith(": do they differ?\n\n[Solution]\nThe first is red.")
    assert "or is seen in the images" in content[4]["text"]
    alone = by_images[()]
    assert isinstance(alone, str) and "images" not in alone


def test_scored_rows_keep_their_images(tmp_path: Path, server: LookingServer) -> None:
    assert easydistill.run(job(tmp_path, server.url, [row("a", "r.png", "b.png")]), quiet=True).exit_code == 0
    (stage,) = (tmp_path / "run/stages").iterdir()
    for path in (tmp_path / "out.json", stage / "labeled.json", stage / "labeled.parquet"):
        samples, rejected = read_samples(path, labelled=True, images=ImageReader(ImageStore(tmp_path / "read")))
        assert not rejected
        (sample,) = samples
        assert sample.images == (digest_of(picture(RED)), digest_of(picture(BLUE)))
        assert (sample.meta["rv"], sample.meta["cd"], sample.meta["correct"]) == (2, 9, 1)
    assert (tmp_path / "out.images").is_dir()
    assert b";base64," not in (stage / JOURNAL).read_bytes()


def test_a_changed_image_is_judged_anew(tmp_path: Path, server: LookingServer) -> None:
    config = job(tmp_path, server.url, [row("a", "r.png", "g.png"), row("b", "g.png", "r.png")])
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert len(server.bodies) == 2
    (tmp_path / "g.png").write_bytes(picture(BLUE))
    assert easydistill.run(config, quiet=True).exit_code == 0
    assert scores(tmp_path) == {"a": (2, 9), "b": (2, 0)} and len(server.bodies) == 4


def test_a_judge_of_text_alone_is_not_asked(tmp_path: Path, server: LookingServer, tiny_model: Path) -> None:
    rows = [row("a", "r.png", "g.png"), row("text", text="Why?")]
    local = {"inference": {"backend": "transformers"}, "models": {"judge": str(tiny_model)}}
    config = job(tmp_path, server.url, rows, judge={"inference": local["inference"]}, models=local["models"])
    (stage,) = stages_of(api.load(config).job)
    found = stage._read()  # type: ignore[attr-defined]
    assert [sample.id for sample in found.samples] == ["text"]
    (refused,) = found.rejected
    assert refused.reason == NOT_SEEN and "the judge is given text alone" in refused.detail


def test_images_without_places_stand_before_the_text() -> None:
    ask = Ask(({"role": "user", "content": "Judge it."},), "judge")
    assert with_images(ask, ()) is ask
    (message,) = with_images(ask, ("sha256:1", "sha256:2")).messages
    assert message["content"] == [
        {"type": "image", "image": "sha256:1"},
        {"type": "image", "image": "sha256:2"},
        {"type": "text", "text": "Judge it."},
    ]
