"""Students that see, through whole jobs: trained on what they are shown, and measured by it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.killed import killed_at, resumes_unless_an_image_changed
from tests.support.pictures import LookingServer, looking, picture, sent_images
from tests.support.vision_models import FAMILIES, mark, vision_model

import easydistill
from easydistill.errors import ConfigError, DataError, ModelError
from easydistill.methods.sft import trainer as supervised
from easydistill.models import head

COLOURS = {"red": (230, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 230), "grey": (120, 120, 120)}
IMAGES, HELD = 40, 10


def made_rows(folder: Path, *, swapped: bool = False) -> list[dict[str, Any]]:
    """Rows about a coloured square each, and one without an image; swapped, each shows the next row's."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(IMAGES):
        name = draw.choice(list(COLOURS))
        shade = tuple(min(255, max(0, value + draw.randint(-15, 15))) for value in COLOURS[name])
        (folder / f"{number}.png").write_bytes(picture(shade, (24, 24)))  # type: ignore[arg-type]
        shown = (number + 1) % IMAGES if swapped else number
        rows.append({"id": f"r{number}", "instruction": "<image>\nColour?", "output": name, "images": [f"{shown}.png"]})
    return [*rows, {"id": "text", "instruction": "Say yes.", "output": "yes"}]


def job(folder: Path, family: str, rows: list[dict[str, Any]], **training: Any) -> dict[str, Any]:
    (folder / "rows.json").write_text(json.dumps(rows))
    values = {"num_train_epochs": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **training}
    return {
        "job_type": "black_box_kd_api",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"student": str(vision_model(family))},
        "training": {"learning_rate": 3e-3, "max_length": 256, "logging_steps": 5, **values},
        "evaluation": {"heldout": HELD, "max_new_tokens": 6},
    }


def figures(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "run" / "stages").glob("*-evaluate/metrics.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "student" / "model.safetensors")


def answers(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "run" / "stages").glob("*-evaluate/answers.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job with a tiny LLaVA."""
    folder = tmp_path_factory.mktemp("llava")
    assert easydistill.run(job(folder, "llava", made_rows(folder))).exit_code == 0
    return folder


def test_a_student_learns_from_what_it_is_shown(llava: Path) -> None:
    found = figures(llava)
    before, after = found["before"], found["after"]
    assert set(after) == {"agreement", "cross_entropy", "kl", "rouge_l", "exact_match", "image_gain"}
    assert after["cross_entropy"] < before["cross_entropy"] / 1.5
    # It looks: with another row's image the answers are harder to say.
    assert after["image_gain"] > 0.05 > abs(before["image_gain"])
    assert after["exact_match"] > before["exact_match"]
    report = (llava / "run" / "report.md").read_text()
    assert "Cross-entropy with another row's image minus that with its own" in report
    assert "Same answer as the teacher's" in report and "![image](" in report


def test_the_saved_student_sees(llava: Path) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    saved = llava / "run" / "student"
    processor, model = AutoProcessor.from_pretrained(saved), AutoModelForImageTextToText.from_pretrained(saved)
    asked = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nColour?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert mark("llava") in asked
    logits = [
        model(**processor(text=[asked], images=[[Image.open(llava / name)]], return_tensors="pt")).logits[0, -1]
        for name in ("0.png", "1.png", "0.png")
    ]
    assert torch.equal(logits[0], logits[2]) and not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_a_finished_run_is_finished_until_an_image_changes(llava: Path) -> None:
    config = (
        json.loads((llava / "run" / "config.json").read_text()) if (llava / "run" / "config.json").is_file() else {}
    )
    config = config or job(llava, "llava", json.loads((llava / "rows.json").read_text()))
    assert not easydistill.run(config).fresh
    kept, before = weights(llava), (llava / "3.png").read_bytes()
    (llava / "3.png").write_bytes(picture((250, 250, 0), (24, 24)))
    try:
        assert easydistill.run(config).fresh
        assert any(not torch.equal(value, kept[name]) for name, value in weights(llava).items())
    finally:
        (llava / "3.png").write_bytes(before)
    easydistill.run(config)
    assert all(torch.equal(value, kept[name]) for name, value in weights(llava).items())


# --- blindness ------------------------------------------------------------------------------------------------------


def test_other_images_give_another_student(llava: Path, tmp_path: Path) -> None:
    """The same rows, the same tokens, each with the next row's image: loss, metrics and answers are others."""
    assert easydistill.run(job(tmp_path, "llava", made_rows(tmp_path, swapped=True))).exit_code == 0
    ours, theirs = figures(llava), figures(tmp_path)
    assert ours["before"]["cross_entropy"] != theirs["before"]["cross_entropy"]
    assert ours["after"]["image_gain"] > theirs["after"]["image_gain"] + 0.05
    losses = [_losses(folder) for folder in (llava, tmp_path)]
    assert losses[1] and losses[0][: len(losses[1])] != losses[1]
    said = [{row["id"]: row["before"] for row in answers(folder)} for folder in (llava, tmp_path)]
    assert said[0] != said[1]


def _losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line.get("stage") == "train" and "loss" in line]


def test_a_blind_body_is_noticed_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`get_decoder` takes no pixels, and does not complain: a red and a green image would be the same to it."""
    from easydistill.methods.shared import compat

    class Decoder(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, use_cache: bool, **swallowed: Any) -> Any:
            return head.decoder_of(self.model)(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(compat, "body_of", Decoder)
    with pytest.raises(ModelError, match="cannot be trained with the fused loss"):
        easydistill.run(job(tmp_path, "llava", made_rows(tmp_path)))


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [False, True])
def test_a_killed_training_goes_on_bit_for_bit_unless_an_image_changed(
    changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    configs = []
    for folder in folders:
        folder.mkdir()
        config = job(folder, "idefics3", made_rows(folder), num_train_epochs=3, save_steps=2)
        config["evaluation"] = {"enabled": False}
        configs.append(config)
    with killed_at(monkeypatch, 5):
        easydistill.run(configs[1])
    resumes_unless_an_image_changed(monkeypatch, supervised, folders, configs, changes)


# --- before anything is paid ----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[LookingServer]:
    with looking() as made:
        yield made


def test_what_an_api_says_of_images_is_learned(tmp_path: Path, server: LookingServer) -> None:
    rows = [{**row, "output": None} for row in made_rows(tmp_path)[:12]]
    (tmp_path / "prompts.json").write_text(
        json.dumps([{name: row[name] for name in ("id", "instruction", "images")} for row in rows])
    )
    config = job(tmp_path, "qwen2_5_vl", [], max_steps=2, num_train_epochs=1)
    config["dataset"] = {"instruction_path": str(tmp_path / "prompts.json")}
    config["inference"] = {"base_url": server.url, "model": "m"}
    config["evaluation"] = {"heldout": 3, "max_new_tokens": 4}
    assert easydistill.run(config).exit_code == 0
    assert len(server.bodies) == 12 and all(len(sent_images(body)) == 1 for body in server.bodies)
    found = figures(tmp_path)
    assert found["after"]["image_gain"] is not None and found["after"]["cross_entropy"] > 0
    assert all(row["teacher"].startswith("(") for row in answers(tmp_path))


def test_rows_are_not_packed_for_a_student_that_sees(tmp_path: Path, server: LookingServer) -> None:
    config = job(tmp_path, "llava", made_rows(tmp_path), packing=True)
    with pytest.raises(ConfigError, match=r"training\.packing.*rows are not packed for a student that sees images"):
        easydistill.run(config)


def test_images_beyond_the_longest_length_are_foretold_and_rejected(tmp_path: Path) -> None:
    config = job(tmp_path, "llava", made_rows(tmp_path)[:-1], max_length=18, max_steps=1)
    told = "\n".join(note for stage in easydistill.plan(config) for note in stage.notes)
    assert f"an image is not within training.max_length in {IMAGES} of {IMAGES} rows" in told
    assert not (tmp_path / "run" / "images").exists()
    with pytest.raises(DataError, match=r"image_truncated, 30 of 30: an image ends at token 22, and only 18 are read"):
        easydistill.run(config)


def test_nothing_is_told_of_rows_that_are_read_whole(tmp_path: Path) -> None:
    assert not [note for stage in easydistill.plan(job(tmp_path, "llava", made_rows(tmp_path))) for note in stage.notes]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_to_look(family: str, tmp_path: Path) -> None:
    config = job(tmp_path, family, made_rows(tmp_path), num_train_epochs=14)
    assert easydistill.run(config).exit_code == 0
    found = figures(tmp_path)
    assert found["after"]["image_gain"] > 0.05
    assert found["after"]["cross_entropy"] < found["before"]["cross_entropy"] / 1.5
