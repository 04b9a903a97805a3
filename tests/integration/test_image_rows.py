"""Rows with images through the job `label`: a real server is sent every image, and nothing else shows its bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.batch_server import BatchServer, batch_server
from tests.support.pictures import BLUE, GREEN, RED, LookingServer, data_url, looking, opened, picture, sent_images

import easydistill
from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import GenerationRequest
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.store import digest_of
from easydistill.data.messages import tagged_text
from easydistill.data.reading import read_samples
from easydistill.data.records import Sample
from easydistill.errors import ConfigError, DataError
from easydistill.methods.shared.row_reading import read_made
from easydistill.teachers.openai.batch.book import batch_line
from easydistill.teachers.openai.chat_completion import request_body


@pytest.fixture
def server() -> Iterator[LookingServer]:
    with looking() as made:
        yield made


def job(
    folder: Path, server: LookingServer | BatchServer, rows: list[dict[str, Any]], **inference: Any
) -> dict[str, Any]:
    url = server.url if isinstance(server, LookingServer) else server.base_url
    (folder / "rows.json").write_text(json.dumps(rows))
    return {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "rows.json"), "labeled_path": str(folder / "out" / "labels.json")},
        "inference": {"base_url": url, "model": "m", "max_retries": 1, "max_retry_wait": 0.1, **inference},
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


def files_with(folder: Path, text: str) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    return [path.relative_to(folder).as_posix() for path in found]


def pictures(folder: Path) -> dict[str, bytes]:
    """Images whose base 64 is long enough to be looked for."""
    made = {f"{name}.png": picture(colour, (90, 60)) for name, colour in (("r", RED), ("g", GREEN), ("b", BLUE))}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return made


def test_every_image_is_sent_whole_and_in_order_and_stands_nowhere_else(tmp_path: Path, server: LookingServer) -> None:
    made = pictures(tmp_path)
    inside = {"type": "image_url", "image_url": {"url": data_url(made["b.png"])}}
    rows = [
        {"id": "text", "instruction": "Say yes."},
        {"id": "two", "instruction": "<image> then <image>?", "images": ["g.png", "r.png"]},
        {"id": "same", "messages": [{"role": "user", "content": [inside, {"type": "text", "text": "?"}]}]},
        {"id": "path", "instruction": "<image>?", "images": ["b.png"]},
        {"id": "bad", "instruction": "<image>?", "images": [], "image": data_url(b"x" * 300)},
    ]
    config = job(tmp_path, server, rows, image={"detail": "low"})
    config["dataset"]["max_rejected_share"] = 0.5
    assert easydistill.run(config).exit_code == 0
    # A row in a data URL and one with the same file are one request.
    assert len(server.bodies) == 3
    by_count = {len(sent_images(body)): body for body in server.bodies}
    assert sent_images(by_count[2]) == [made["g.png"], made["r.png"]] and sent_images(by_count[1]) == [made["b.png"]]
    kinds = [part["type"] for part in by_count[2]["messages"][0]["content"]]
    assert kinds == ["image_url", "text", "image_url", "text"]
    assert by_count[2]["messages"][0]["content"][0]["image_url"]["detail"] == "low"
    assert by_count[0]["messages"] == [{"role": "user", "content": "Say yes."}]
    samples = {sample.id: sample for sample in labelled(tmp_path)}
    assert samples["two"].answer == "(0, 255, 0) (255, 0, 0)" and samples["path"].answer == "(0, 0, 255)"
    assert samples["text"].messages[0] == {"role": "user", "content": "Say yes."}
    for data in (*made.values(), b"x" * 300):
        assert files_with(tmp_path / "run", data_url(data).partition(",")[2][60:120]) == []
    assert set(files_with(tmp_path / "run", ";base64,")) == {"report.html", "stages/1-label/rejected.jsonl"}
    assert "base64,[400 characters]" in (tmp_path / "run/stages/1-label/rejected.jsonl").read_text()


def test_an_error_that_quotes_the_request_shows_no_image(tmp_path: Path, server: LookingServer) -> None:
    made = pictures(tmp_path)
    server.status, server.error = 400, lambda text: {"error": {"message": f"cannot read {text}", "code": 400}}
    rows = [{"instruction": "<image>?", "images": ["r.png"]}]
    with pytest.raises(DataError) as stopped:
        easydistill.run(job(tmp_path, server, rows))
    piece = data_url(made["r.png"]).partition(",")[2][30:90]
    assert piece not in str(stopped.value) and files_with(tmp_path / "run", piece) == []
    assert files_with(tmp_path / "run", "cannot read") and "cannot read" in str(stopped.value)


def test_images_are_scaled_down_for_the_teacher_alone(tmp_path: Path, server: LookingServer) -> None:
    pictures(tmp_path)
    rows = [{"instruction": "<image>?", "images": ["r.png"]}]
    easydistill.run(job(tmp_path, server, rows, image={"max_pixels": 600}))
    assert opened(sent_images(server.bodies[0])[0]).size == (30, 20)
    (sample,) = labelled(tmp_path)
    assert opened(ImageStore(tmp_path / "run" / "images").path(sample.images[0]).read_bytes()).size == (90, 60)
    # Another limit is another question; none of the text rows' business, of which there are none here.
    easydistill.run(job(tmp_path, server, rows, image={"max_pixels": 150}))
    assert [opened(sent_images(body)[0]).size for body in server.bodies] == [(30, 20), (15, 10)]


def test_published_rows_bring_their_images(tmp_path: Path, server: LookingServer) -> None:
    made = pictures(tmp_path)
    rows = [{"id": name, "instruction": "<image>?", "images": [f"{name}.png"]} for name in "rg"]
    config = job(tmp_path, server, rows)
    for suffix in ("json", "jsonl", "parquet"):
        config["dataset"]["labeled_path"] = str(tmp_path / "out" / f"{suffix}.{suffix}")
        easydistill.run(config)
    assert len(server.bodies) == 2
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "run").rename(tmp_path / "gone")
    for suffix in ("json", "jsonl", "parquet"):
        reader = ImageReader(ImageStore(tmp_path / "other" / "images"))
        samples, _ = read_samples(tmp_path / "moved" / f"{suffix}.{suffix}", labelled=True, images=reader)
        assert {sample.images for sample in samples} == {(digest_of(made["r.png"]),), (digest_of(made["g.png"]),)}


def test_a_changed_image_is_asked_about_again_and_nothing_else(tmp_path: Path, server: LookingServer) -> None:
    pictures(tmp_path)
    rows = [{"id": name, "instruction": "<image>?", "images": [f"{name}.png"]} for name in "rg"]
    config = job(tmp_path, server, rows)
    easydistill.run(config)
    assert not easydistill.run(config).fresh and len(server.bodies) == 2
    (tmp_path / "r.png").write_bytes(picture(BLUE, (90, 60)))
    assert easydistill.run(config).fresh
    assert [sample.answer for sample in labelled(tmp_path)] == ["(0, 0, 255)", "(0, 255, 0)"]
    assert len(server.bodies) == 3


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, server: LookingServer) -> None:
    made = pictures(tmp_path)
    rows = [{"id": str(n), "instruction": f"<image>{n}", "images": [f"{'rgb'[n % 3]}.png"]} for n in range(24)]
    config = job(tmp_path, server, rows, max_concurrency=1)
    easydistill.run(config)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "run/stages/1-label").glob("labeled.*")}
    images = {path.name: path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}
    stage = tmp_path / "run" / "stages" / "1-label"
    # As a kill in the middle leaves it: some answers, an image half gone to disk under its temporary name.
    for path in (*whole, "manifest.json", "image_sources.json"):
        (stage / path).unlink()
    journal = (stage / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (stage / "journal.jsonl").write_bytes(b"".join(journal[:10]) + journal[10][:20])
    gone = tmp_path / "run" / "images" / f"{digest_of(made['g.png']).removeprefix('sha256:')}.png"
    gone.rename(gone.with_name(f".{gone.name}.1.tmp"))
    asked_before = len(server.bodies)
    easydistill.run(config)
    assert len(server.bodies) - asked_before == 14
    assert {path.name: path.read_bytes() for path in stage.glob("labeled.*")} == whole
    assert images.items() <= {path.name: path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}.items()


def test_training_stops_where_images_of_the_run_are_gone(tmp_path: Path, server: LookingServer) -> None:
    """Without them the labelled rows would be left out, though they are paid for."""
    pictures(tmp_path)
    rows = [{"id": str(n), "instruction": f"<image>{n}", "images": [f"{'rgb'[n % 3]}.png"]} for n in range(6)]
    easydistill.run(job(tmp_path, server, [*rows, {"id": "text", "instruction": "Say yes."}]))
    stage, images = tmp_path / "run" / "stages" / "1-label", tmp_path / "run" / "images"
    context = SimpleNamespace(images=ImageStore(images))
    samples, rejected = read_made(stage / "labeled.parquet", context)  # type: ignore[arg-type]
    assert len(samples) == 7 and not rejected
    gone = min(images.glob("*.png"))
    gone.unlink()
    context = SimpleNamespace(images=ImageStore(images))
    with pytest.raises(DataError, match=rf"missing or damaged: images/{gone.name}\n.*remove .*manifest\.json"):
        read_made(stage / "labeled.parquet", context)  # type: ignore[arg-type]


def test_the_report_has_thumbnails(tmp_path: Path, server: LookingServer) -> None:
    pictures(tmp_path)
    (tmp_path / "large.png").write_bytes(picture(BLUE, (900, 300)))
    rows = [
        {"id": "a", "instruction": "Compare <image> with <image>.", "images": ["large.png", "r.png"]},
        {"id": "b", "instruction": "Say yes."},
    ]
    found = easydistill.run(job(tmp_path, server, rows))
    html, markdown = unescape(found.report.read_text()), (tmp_path / "run" / "report.md").read_text()
    sources = re.findall(r'<img src="([^"]+)"', html)
    assert len(sources) == 2 and all((tmp_path / "run" / source).is_file() for source in sources)
    assert opened((tmp_path / "run" / sources[0]).read_bytes()).size == (160, 53)
    assert "img-src 'self' file:" in html and f"![image]({sources[0]})" in markdown
    assert "Compare <image> with <image>." in html and "base64" not in html + markdown


def test_a_report_without_images_loads_nothing(tmp_path: Path, server: LookingServer) -> None:
    found = easydistill.run(job(tmp_path, server, [{"instruction": "Say yes."}]))
    assert "img-src" not in found.report.read_text() and not (tmp_path / "run" / "images").exists()


def test_plans_count_images_and_previews_show_where_they_stand(tmp_path: Path, server: LookingServer) -> None:
    pictures(tmp_path)
    rows = [{"instruction": "<image> or <image>?", "images": ["r.png", "g.png"]}, {"instruction": "or?"}]
    (pictured,) = easydistill.plan(job(tmp_path, server, rows))
    (plain,) = easydistill.plan(job(tmp_path, server, [{"instruction": "or?"}, {"instruction": "or so?"}]))
    more, less = (stage.estimate.prompt_tokens for stage in (pictured, plain))
    assert more is not None and less is not None and more[0] - less[0] >= 900
    shown = easydistill.preview(job(tmp_path, server, rows))
    assert tagged_text(shown[0].messages[0]) == "<image> or <image>?"
    # Nothing is stored for either.
    assert not (tmp_path / "run" / "images").exists() and not server.bodies


def test_images_go_into_batches(tmp_path: Path) -> None:
    made = pictures(tmp_path)
    store = ImageStore(tmp_path / "images")
    digest = store.add(made["r.png"])
    message: Any = {"role": "user", "content": [{"type": "image", "image": digest}, {"type": "text", "text": "?"}]}
    config = ApiInferenceConfig(base_url="http://x/v1", model="m", batch={})
    body = request_body(config, "m", GenerationRequest("k", (message,)))
    line = batch_line("k", body)
    assert b"base64" not in line
    sent = json.loads(store.filled_line(line))
    assert sent_images(sent["body"]) == [made["r.png"]] and sent["custom_id"] == "k"
    text = batch_line("k", request_body(config, "m", GenerationRequest("k", ({"role": "user", "content": "?"},))))
    assert store.filled_line(text) == text


def test_a_folder_of_images_that_is_not_there_is_told_before_the_run(tmp_path: Path, server: LookingServer) -> None:
    config = job(tmp_path, server, [{"instruction": "<image>?", "images": ["r.png"]}])
    config["dataset"]["image_folder"] = str(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"dataset\.image_folder.*no such folder"):
        easydistill.run(config)


# --- where nobody would look ------------------------------------------------------------------------------------


def test_a_student_is_not_trained_blind(tmp_path: Path, server: LookingServer, tiny_model: Path) -> None:
    """The rows are refused before an answer is paid for."""
    pictures(tmp_path)
    rows = [{"instruction": "<image>?", "images": ["r.png"]}, {"instruction": "Say yes."}]
    config = job(tmp_path, server, rows) | {"job_type": "black_box_kd_api", "models": {"student": str(tiny_model)}}
    with pytest.raises(ConfigError, match=r"1 of the first 2 rows have an image; .* text alone and would not see it"):
        easydistill.run(config)
    assert not server.bodies


def test_a_file_of_labelled_rows_with_images_is_not_trained_on_blind(tmp_path: Path, tiny_model: Path) -> None:
    pictures(tmp_path)
    rows = [{"instruction": "<image>?", "output": "Red.", "images": ["r.png"]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = {
        "job_type": "black_box_kd_api",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"labeled_path": str(tmp_path / "rows.json")},
        "models": {"student": str(tiny_model)},
    }
    with pytest.raises(ConfigError, match=r"1 of the first 1 rows have an image; .* text alone and would not see it"):
        easydistill.run(config)


def test_a_teacher_on_this_machine_is_not_asked_blind(tmp_path: Path, server: LookingServer, tiny_model: Path) -> None:
    pictures(tmp_path)
    config = job(tmp_path, server, [{"instruction": "<image>?", "images": ["r.png"]}])
    config |= {"inference": {"backend": "transformers"}, "models": {"teacher": str(tiny_model)}}
    with pytest.raises(DataError, match="the teacher is given text alone and would not see it"):
        easydistill.run(config)


def test_an_operator_does_not_take_other_images_for_the_same_row(tmp_path: Path, server: LookingServer) -> None:
    pictures(tmp_path)
    rows = [{"id": name, "instruction": "<image>?", "output": "A.", "images": [f"{name}.png"]} for name in "rg"]
    config = job(tmp_path, server, [*rows, {"id": "text", "instruction": "Say yes.", "output": "Yes."}])
    config |= {"job_type": "deduplicate"}
    del config["inference"]
    easydistill.run(config)
    (stage,) = (tmp_path / "run" / "stages").iterdir()
    assert not (stage / "rejected.jsonl").read_text()
    kept = json.loads((stage / "labeled.json").read_text())
    assert [row["id"] for row in kept] == ["r", "g", "text"]
    assert len({image for row in kept for image in row.get("images", ())}) == 2


def test_a_batch_is_uploaded_with_its_images_and_kept_without(tmp_path: Path) -> None:
    made = pictures(tmp_path)
    rows = [{"id": name, "instruction": f"<image>{name}?", "images": [f"{name}.png"]} for name in "rg"]
    with batch_server() as server:
        config = job(tmp_path, server, rows, batch={"poll_interval": 0.02})
        assert easydistill.run(config).exit_code == 0
        sent = [sent_images(line["body"]) for line in server.lines]
    assert sorted(sent) == sorted([[made["r.png"]], [made["g.png"]]]) and not server.singles
    assert [sample.images for sample in labelled(tmp_path)] == [(digest_of(made[f"{name}.png"]),) for name in "rg"]
