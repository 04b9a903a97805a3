"""Pairs with images: every public shape of their rows is read or refused by name, and what is written is read again."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.support.pictures import BLUE, GREEN, RED, picture

from easydistill.config.dataset import PairsConfig
from easydistill.config.evaluation import HeldoutConfig
from easydistill.config.models import ModelsConfig
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.store import digest_of
from easydistill.data.messages import Message, text_of
from easydistill.data.preferences import PairReading, Preference, read_pairs
from easydistill.data.records import split_heldout
from easydistill.data.writing import write_pairs_json, write_pairs_parquet
from easydistill.errors import DataError
from easydistill.methods.shared.pairs import PairRows

PICTURES = {"a.png": picture(RED), "b.png": picture(GREEN)}
A, B = map(digest_of, PICTURES.values())
HELD = {"bytes": PICTURES["a.png"], "path": "somewhere.png"}
PARTS = [{"type": "image"}, {"type": "text", "text": "Colour?"}]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def said(messages: tuple[Message, ...]) -> list[Any]:
    """Roles, texts and digests, in order."""
    found: list[Any] = []
    for message in messages:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        found.append([message["role"], *(part["text"] if part["type"] == "text" else part["image"] for part in parts)])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def read(path: Path, **config: Any) -> PairReading:
    settings = PairsConfig(labeled_path=str(path), **config)
    return read_pairs(path, images=ImageReader.of(settings, ImageStore(path.parent / "store")))


def as_json(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, default=lambda data: base64.b64encode(data).decode()))
    return path


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


SIDES = {"chosen": "red", "rejected": "blue"}
SPOKEN = {"chosen": {"from": "gpt", "value": "red"}, "rejected": {"from": "gpt", "value": "blue"}}
ROWS: dict[str, dict[str, Any]] = {
    "TRL": {
        "images": ["a.png"],
        "prompt": [user(PARTS)],
        "chosen": [assistant("red")],
        "rejected": [assistant("blue")],
    },
    "TRL, parts everywhere": {
        "images": [HELD],
        "prompt": [user(PARTS)],
        "chosen": [assistant([{"type": "text", "text": "red"}])],
        "rejected": [assistant([{"type": "text", "text": "blue"}])],
    },
    "TRL, no places": {"images": ["a.png"], "prompt": [user("Colour?")], **SIDES},
    "TRL, implicit prompt": {
        "images": ["a.png"],
        "chosen": [user("Colour?"), assistant("red")],
        "rejected": [user("Colour?"), assistant("blue")],
    },
    "one image": {"image": "a.png", "prompt": "Colour?", **SIDES},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": "<image>Colour?"}], **SPOKEN, "images": ["a.png"]},
    "LLaMA-Factory, Alpaca": {"instruction": "<image>Colour?", "input": "", **SIDES, "images": ["a.png"]},
    "RLAIF-V": {"ds_name": "x", "image": HELD, "question": "Colour?", **SIDES, "idx": 3, "image_path": "x/y.jpg"},
    "RLHF-V": {"image": HELD, "text": json.dumps({"question": "Colour?", **SIDES}), "image_path": "x/y.jpg"},
    "RLHF-V as an object": {"image": HELD, "text": {"question": "Colour?", **SIDES}},
    "MMPR": {"image": ["a.png"], "question": "<image>\nColour?", **SIDES},
    "ms-swift": {
        "messages": [user("<image>Colour?"), assistant("red")],
        "rejected_response": "blue",
        "images": ["a.png"],
    },
    "ms-swift, messages": {
        "messages": [user("<image>Colour?"), assistant("red")],
        "rejected_messages": [user("<image>Colour?"), assistant("blue")],
        "images": ["a.png"],
    },
    "POVID": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}],
        "rejected_conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "blue"}],
    },
    "VLFeedback": {
        "image": HELD,
        "prompt": "Colour?",
        "completions": [{"response": "blue", "score": 1}, {"response": "red", "score": 5}],
    },
    "LLaVA-RLHF": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nColour?"}],
        "output_1": {"from": "llm", "value": "red"},
        "output_2": {"from": "llm", "value": "blue"},
        "preference": 1,
    },
}


@pytest.mark.parametrize("written", [as_json, as_parquet])
@pytest.mark.parametrize("name", ROWS)
def test_public_shapes(name: str, written: Any, folder: Path) -> None:
    (pair,) = read(written(folder, [ROWS[name]])).pairs
    assert said(pair.prompt) == [["user", A, "Colour?"]]
    assert [said(pair.chosen), said(pair.rejected)] == [[["assistant", "red"]], [["assistant", "blue"]]]
    assert pair.images == (A,)


def test_openais_parts_keep_their_order(folder: Path) -> None:
    content = [{"type": "text", "text": "Colour?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    preferred = {"preferred_output": [assistant("red")], "non_preferred_output": [assistant("blue")]}
    row = {"input": {"messages": [user(content)]}, **preferred}
    (pair,) = read(as_json(folder, [row])).pairs
    assert said(pair.prompt) == [["user", "Colour?", A]]


def test_votes_on_the_same_image_make_a_pair(folder: Path) -> None:
    asked = {"prompt": "<image>Colour?", "images": ["a.png"]}
    rows = [
        {**asked, "completion": "red", "label": True},
        {**asked, "completion": "blue", "label": False},
        {**asked, "images": ["b.png"], "completion": "red", "label": False},
    ]
    found = read(as_json(folder, rows))
    assert [pair.images for pair in found.pairs] == [(A,)]
    assert [rejection.reason for rejection in found.rejected] == ["unpaired"]


@pytest.mark.parametrize(
    "row, reason, words",
    [
        ({"images": ["a.png", "b.png"], "prompt": "<image>Colour?", **SIDES}, "image_count", "has 2 images"),
        ({"images": ["a.png"], "prompt": "<image>Q", "chosen": "a <image>", "rejected": "b"}, "image_place", "<image>"),
        ({"prompt": [user("Q")], "chosen": [assistant([{"type": "image", "image": "a.png"}])], "rejected": "b"},
         "image_place", "user's messages alone"),
        ({"image": "a.png", "prompt": "Q", **SIDES, "rejected_image": "b.png"}, "image_place", "`rejected_image`"),
        ({"chosen": [user([{"type": "image", "image": "a.png"}]), assistant("red")],
          "rejected": [user([{"type": "image", "image": "b.png"}]), assistant("red")]},
         "image_place", "show different images"),
        ({"videos": ["a.mp4"], "prompt": "Q", **SIDES}, "video_not_supported", "videos are not read"),
        ({"images": ["c.png"], "prompt": "Q", **SIDES}, "image_missing", "no such file"),
        ({"images": ["https://example.org/a.png"], "prompt": "Q", **SIDES}, "image_remote", "dataset.fetch_images"),
        ({"image": HELD, "text": json.dumps({"question": "Q", "chosen": "a"})}, "malformed_row", "it has: image, text"),
    ],
)  # fmt: skip
def test_other_rows_are_refused_by_name(row: dict[str, Any], reason: str, words: str, folder: Path) -> None:
    good = {"images": ["a.png"], "prompt": "Colour?", **SIDES}
    found = read(as_json(folder, [good, row]))
    (rejection,) = found.rejected
    assert rejection.reason == reason and words in rejection.detail and len(found.pairs) == 1


def test_images_of_another_folder(folder: Path) -> None:
    (folder / "rows").mkdir()
    row = {"images": ["a.png"], "prompt": "Colour?", **SIDES}
    (pair,) = read(as_json(folder / "rows", [row]), image_folder=str(folder)).pairs
    assert pair.images == (A,)
    settings = PairsConfig(labeled_path="x", image_folder="y", fetch_images=True)
    assert settings.reading_identity() == {"image_folder": "y", "fetch_images": True}
    assert PairsConfig(labeled_path="x").reading_identity() == {}


@pytest.mark.parametrize("write", [write_pairs_json, write_pairs_parquet])
def test_what_is_written_is_read_again(write: Any, folder: Path) -> None:
    several = {"images": ["a.png", "b.png", "a.png"], "prompt": "<image>One <image>\nand\n\n<image>", **SIDES}
    turns = [user("<image>Colour?"), assistant("red"), user("And <image>?")]
    rows = [
        {"id": "several", **several},
        {"id": "text", "prompt": "Hello", **SIDES, "beta": 0.2},
        {"id": "turns", "prompt": turns, **SIDES, "images": ["a.png", "b.png"], "chosen_score": 3},
    ]
    pairs = read(as_json(folder, rows)).pairs
    assert [len(pair.images) for pair in pairs] == [3, 0, 2]
    target = folder / "made" / f"pairs.{'json' if write is write_pairs_json else 'parquet'}"
    target.parent.mkdir()
    store = ImageStore(folder / "store")
    write(target, pairs, store)
    again = read_pairs(target, images=ImageReader.of(PairsConfig(labeled_path=str(target)), store)).pairs
    assert [replace(pair, meta={}) for pair in again] == [replace(pair, meta={}) for pair in pairs]
    assert again[2].meta["chosen_score"] == 3
    assert [pair.prompt_hash for pair in again] == [pair.prompt_hash for pair in pairs]


def test_pairs_that_share_an_image_stay_on_one_side(folder: Path) -> None:
    for number in range(12):
        (folder / f"{number}.png").write_bytes(picture((number * 20, 0, 0)))
    rows = [
        {"id": f"{number}-{ask}", "images": [f"{number}.png"], "prompt": f"Question {ask}?", **SIDES}
        for number in range(12)
        for ask in range(3)
    ]
    pairs = read(as_json(folder, rows)).pairs
    train, held = split_heldout(pairs, 9, 1)
    assert held and train and not {pair.images for pair in train} & {pair.images for pair in held}


def test_other_images_are_other_pairs(folder: Path) -> None:
    row = {"images": ["a.png"], "prompt": "Colour?", **SIDES}
    one, other = read(as_json(folder, [row, {**row, "images": ["b.png"]}])).pairs
    assert one.id != other.id and one.prompt_hash != other.prompt_hash
    assert text_of(one.prompt[0]) == text_of(other.prompt[0])


def test_without_a_student_that_sees_pairs_with_images_are_refused(folder: Path, tiny_model: Path) -> None:
    rows = [{"images": ["a.png"], "prompt": "Colour?", **SIDES}, {"prompt": "Hello", **SIDES}]
    path = as_json(folder, rows)
    dataset = PairsConfig(labeled_path=str(path))
    for shown_to, words in (
        (None, "trains on text alone"),
        (ModelsConfig(student=str(tiny_model)), "reads text alone"),
    ):
        found = PairRows(dataset, HeldoutConfig(), shown_to=shown_to)
        assert found.refuses_images is not None and words in found.refuses_images
        first = found.preview(10, ImageStore())
        assert first.unseen == 1 and len(first.chats) == 2
        assert "images_seen" not in found.fingerprint()
    nothing = PairRows(PairsConfig(labeled_path=str(as_json(folder, rows[:1]))), HeldoutConfig())
    assert nothing.preview(10, ImageStore()).unseen == 1
    with pytest.raises(DataError, match="none of its 1 rows is a pair"):
        read_pairs(as_json(folder, rows[:1]))


def test_a_blue_picture_is_read_once(folder: Path) -> None:
    """However often rows show it."""
    held = {"bytes": picture(BLUE), "path": None}
    rows = [{"images": [held], "prompt": f"Question {number}?", **SIDES} for number in range(3)]
    pairs: list[Preference] = read(as_json(folder, rows)).pairs
    assert {pair.images for pair in pairs} == {(digest_of(picture(BLUE)),)}
    assert len(list((folder / "store").glob("*.png"))) == 1
