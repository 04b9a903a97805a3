"""Rows with images through the job `label`: a real server is sent every image, and nothing else shows its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.pictures import RED, LookingServer, data_url, looking, picture

import easydistill
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.store import digest_of
from easydistill.data.reading import read_samples
from easydistill.data.records import Sample


@pytest.fixture
def server() -> Iterator[LookingServer]:
    with looking() as made:
        yield made


def job(folder: Path, server: LookingServer, rows: list[dict[str, Any]], **inference: Any) -> dict[str, Any]:
    (folder / "rows.json").write_text(json.dumps(rows))
    return {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "rows.json"), "labeled_path": str(folder / "out" / "labels.json")},
        "inference": {"base_url": server.url, "model": "m", "max_retries": 1, "max_retry_wait": 0.1, **inference},
    }


def labelled(folder: Path, name: str = "labeled.json") -> list[Sample]:
    path = next((folder / "run" / "stages").glob("*-label")) / name
    samples, rejected = read_samples(path, labelled=True, images=ImageReader(ImageStore(folder / "run" / "images")))
    assert not rejected
    return list(samples)


def test_a_row_with_an_image_is_labelled_and_read_again(tmp_path: Path, server: LookingServer) -> None:
    (tmp_path / "red.png").write_bytes(picture(RED))
    rows = [{"id": "a", "instruction": "<image>\nWhich colour?", "images": ["red.png"]}]
    assert easydistill.run(job(tmp_path, server, rows)).exit_code == 0
    (body,) = server.bodies
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == "Which colour?"
    assert message["content"][0]["image_url"] == {"url": data_url(picture(RED))}
    for name in ("labeled.json", "labeled.parquet"):
        (sample,) = labelled(tmp_path, name)
        digest = digest_of(picture(RED))
        asked = [{"type": "image", "image": digest}, {"type": "text", "text": "Which colour?"}]
        assert sample.messages == ({"role": "user", "content": asked}, {"role": "assistant", "content": "(255, 0, 0)"})
        assert sample.id == "a"
