"""Jobs on pairs of answers about images: students and reward models that learn from what they are shown."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.killed import killed_at, resumes_unless_an_image_changed
from tests.support.pictures import looking, picture, sent_images
from tests.support.vision_models import FAMILIES, vision_model

import easydistill
from easydistill.contracts.reward import RewardContext, Rollout
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.images.store import digest_of
from easydistill.data.messages import text_of
from easydistill.data.preferences import read_pairs
from easydistill.errors import ConfigError
from easydistill.methods.dpo import trl_trainer as preferences
from easydistill.methods.reward_model import trl_trainer as scoring
from easydistill.rewards import reward_model

COLOURS = {"red": (230, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 230), "grey": (120, 120, 120)}
IMAGES, HELD = 24, 6
SLOW = pytest.mark.slow
BOTH = ["dpo", pytest.param("reward_model", marks=SLOW)]
SHOWN = {"dpo": "margin", "reward_model": "score_margin"}
"""What each job's figures call the distance between the answers of a pair."""


def made_pairs(folder: Path, *, swapped: bool = False) -> list[dict[str, Any]]:
    """Pairs about a coloured square each, and one without an image; swapped, each shows the next one's."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(IMAGES):
        right, wrong = draw.sample(list(COLOURS), 2)
        shade = tuple(min(255, max(0, value + draw.randint(-15, 15))) for value in COLOURS[right])
        (folder / f"{number}.png").write_bytes(picture(shade, (24, 24)))  # type: ignore[arg-type]
        shown = (number + 1) % IMAGES if swapped else number
        row = {"id": f"r{number}", "prompt": "<image>\nColour?", "chosen": right, "rejected": wrong}
        rows.append({**row, "images": [f"{shown}.png"]})
    return [*rows, {"id": "text", "prompt": "Say yes.", "chosen": "yes", "rejected": "no"}]


def job(kind: str, folder: Path, student: str, rows: list[dict[str, Any]], **training: Any) -> dict[str, Any]:
    (folder / "pairs.json").write_text(json.dumps(rows))
    values = {"num_train_epochs": 10, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, **training}
    return {
        "job_type": kind,
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "pairs.json")},
        "models": {"student": student},
        "training": {"learning_rate": 1e-3, "max_length": 256, "logging_steps": 5, "bf16": False, **values},
        "evaluation": {"heldout": HELD},
    }


def figures(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "run" / "stages").glob("*-train/manifest.json")
    found: dict[str, Any] = json.loads(path.read_text())["metrics"]
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "student" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line.get("stage") == "train" and "loss" in line]


@pytest.mark.parametrize("kind", BOTH)
def test_a_student_prefers_what_it_sees(kind: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "own", tmp_path / "swapped"
    for folder in (ours, theirs):
        folder.mkdir()
        rows = made_pairs(folder, swapped=folder is theirs)
        assert easydistill.run(job(kind, folder, str(vision_model("llava")), rows)).exit_code == 0
    own, swapped = figures(ours), figures(theirs)
    accuracy = {"dpo": "reward_accuracy", "reward_model": "pair_accuracy"}[kind]
    assert own["after"][accuracy] > 0.8 and own["after"][SHOWN[kind]] > own["before"][SHOWN[kind]] + 0.5
    # The same tokens, with the images of other pairs: another loss, other figures, and nothing to be seen.
    assert losses(ours) != losses(theirs)
    assert own["after"][SHOWN[kind]] > swapped["after"][SHOWN[kind]] + 0.5
    assert (own["train_rows"], own["heldout_rows"]) == (IMAGES + 1 - HELD, HELD)
    report = (ours / "run" / "report.md").read_text()
    assert "![image](report_images/" in report and "Colour?" in report
    assert "base64" not in report

    store = ImageStore(ours / "run" / "images")
    saved = ours / "run" / "student"
    assert {"processor_config.json", "tokenizer.json"} <= {path.name for path in saved.iterdir()}
    if kind == "reward_model":
        judge = reward_model.make(
            reward_model.Config(model=str(saved), dtype="float32"), RewardContext(device="cpu", images=store.path)
        )
        digests = [store.add((ours / f"{number}.png").read_bytes()) for number in range(IMAGES)]
        told: list[tuple[float, float]] = []
        for row, digest in zip(rows, digests, strict=False):
            asked: Any = ({"role": "user", "content": [{"type": "image", "image": digest}, _TEXT]},)
            both = judge([Rollout(asked, row[side], (), (), True) for side in ("chosen", "rejected")])
            told.append((float(both[0] or 0), float(both[1] or 0)))
        assert sum(better > worse for better, worse in told) > 0.8 * IMAGES


_TEXT = {"type": "text", "text": "Colour?"}


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("kind", BOTH)
def test_a_killed_training_goes_on_bit_for_bit_unless_an_image_changed(
    kind: str, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "whole", tmp_path / "killed"]
    configs = []
    for folder in folders:
        folder.mkdir()
        config = job(kind, folder, str(vision_model("idefics3")), made_pairs(folder), num_train_epochs=2, save_steps=2)
        config["evaluation"] = {"enabled": False}
        configs.append(config)
    with killed_at(monkeypatch, 5):
        easydistill.run(configs[1])
    module = {"dpo": preferences, "reward_model": scoring}[kind]
    resumes_unless_an_image_changed(monkeypatch, module, folders, configs, changes)


@SLOW
def test_a_finished_run_is_finished_until_an_image_changes(tmp_path: Path) -> None:
    config = job("dpo", tmp_path, str(vision_model("llava")), made_pairs(tmp_path), max_steps=2)
    assert easydistill.run(config).fresh and not easydistill.run(config).fresh
    kept = weights(tmp_path)
    (tmp_path / "3.png").write_bytes(picture((250, 250, 0), (24, 24)))
    assert easydistill.run(config).fresh
    assert any(not torch.equal(value, kept[name]) for name, value in weights(tmp_path).items())


# --- before anything starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dpo", "reward_model", "cogpo"])
def test_a_student_of_text_is_refused(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    config = job(kind, tmp_path, str(tiny_model), made_pairs(tmp_path))
    words = rf"models\.student: {IMAGES} of the first {IMAGES + 1} rows have an image.*reads text alone"
    with pytest.raises(ConfigError, match=words):
        easydistill.run(config)
    assert not (tmp_path / "run" / "images").exists()
    only = [row for row in made_pairs(tmp_path) if "images" in row]
    with pytest.raises(ConfigError, match="have an image"):
        easydistill.run(job(kind, tmp_path, str(tiny_model), only))


def test_images_beyond_the_longest_length_are_foretold(tmp_path: Path) -> None:
    config = job("dpo", tmp_path, str(vision_model("llava")), made_pairs(tmp_path)[:-1], max_length=18)
    told = "\n".join(note for stage in easydistill.plan(config) for note in stage.notes)
    assert "an image is not within training.max_length in 48 of 48 answers" in told


def test_nothing_is_told_of_pairs_that_are_read_whole(tmp_path: Path) -> None:
    for kind in ("dpo", "reward_model"):
        config = job(kind, tmp_path, str(vision_model("llava")), made_pairs(tmp_path))
        assert not [note for stage in easydistill.plan(config) for note in stage.notes]


def test_cogpo_learns_from_given_pairs_with_images(tmp_path: Path) -> None:
    rows = [{**row, "beta": 0.05 + 0.1 * (at % 2)} for at, row in enumerate(made_pairs(tmp_path))]
    config = job("cogpo", tmp_path, str(vision_model("qwen2_5_vl")), rows, max_steps=2)
    assert easydistill.run(config).exit_code == 0
    found = figures(tmp_path)
    assert found["train_rows"] == IMAGES + 1 - HELD and found["after"] != found["before"]


@SLOW
@pytest.mark.parametrize("kind, suffix", [("dpo", "json"), ("reward_model", "parquet")])
def test_pairs_of_a_teacher_and_a_student_are_learned(kind: str, suffix: str, tmp_path: Path) -> None:
    """Both answer questions about images, a judge scores them, and what is written is trained on."""
    asked = [{name: row[name] for name in ("id", "prompt", "images")} for row in made_pairs(tmp_path)[:-1]]
    (tmp_path / "prompts.json").write_text(json.dumps([*asked, {"id": "text", "prompt": "Say yes."}]))
    target = tmp_path / "out" / f"made.{suffix}"
    student = str(vision_model("idefics3"))
    with looking() as server:

        def answer(body: dict[str, Any]) -> str:
            text = json.dumps(body["messages"])
            if "<score>" in text:
                return f"<score>{9 if 'red and' in text else 1}</score>"
            return f"{'red' if body['model'] == 'teacher' else 'blue'} and {len(sent_images(body))}"

        server.answers = answer
        config = {
            "job_type": "preference_data",
            "output_dir": str(tmp_path / "made"),
            "dataset": {"instruction_path": str(tmp_path / "prompts.json"), "labeled_path": str(target)},
            "inference": {"base_url": server.url, "model": "teacher"},
            "student_inference": {"base_url": server.url, "model": "student"},
            "synthesis": {"method": "student", "student_samples": 1},
        }
        assert easydistill.run(config).exit_code == 0
    written = read_pairs(target, images=ImageReader(ImageStore(tmp_path / "read")))
    pairs = {pair.id: pair for pair in written.pairs}
    assert not written.rejected and len(pairs) == IMAGES + 1
    for number in range(IMAGES):
        digest = digest_of((tmp_path / f"{number}.png").read_bytes())
        assert pairs[f"r{number}"].images == (digest,)
        both = [text_of(side[0]) for side in (pairs[f"r{number}"].chosen, pairs[f"r{number}"].rejected)]
        assert both == ["red and 1", "blue and 1"]
    assert pairs["text"].images == () and "base64" not in (tmp_path / "made" / "report.md").read_text()
    assert "![image](report_images/" in (tmp_path / "made" / "report.md").read_text()

    learned = job(kind, tmp_path, student, [], max_steps=2)
    learned["dataset"]["labeled_path"] = str(target)
    assert easydistill.run(learned).exit_code == 0
    found = figures(tmp_path)
    assert (found["train_rows"], found["heldout_rows"]) == (IMAGES + 1 - HELD, HELD) and found["image_rows"] == IMAGES


@SLOW
def test_a_policy_is_rewarded_by_a_model_that_sees(tmp_path: Path) -> None:
    """What `reward_model` saved judges the answers of GRPO about images."""
    student, rows = str(vision_model("llava")), made_pairs(tmp_path)
    assert easydistill.run(job("reward_model", tmp_path, student, rows)).exit_code == 0
    prompts = [{name: row[name] for name in ("id", "prompt", "images")} for row in rows[:8]]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    config = {
        "job_type": "grpo",
        "output_dir": str(tmp_path / "grpo"),
        "dataset": {"instruction_path": str(tmp_path / "prompts.json")},
        "models": {"student": student},
        "rewards": {"reward_model": {"model": str(tmp_path / "run" / "student"), "dtype": "float32"}},
        "policy": {"max_new_tokens": 6, "num_generations": 4, "mask_truncated": False},
        "training": {"max_steps": 2, "bf16": False, "per_device_train_batch_size": 8, "logging_steps": 1},
        "evaluation": {"enabled": False},
    }
    assert easydistill.run(config).exit_code == 0
    lines = map(json.loads, (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines())
    told = [line["reward/reward_model"] for line in lines if "reward/reward_model" in line]
    assert len(told) == 2 and told[0] != told[1]
    config["rewards"] = {"reward_model": {"model": student}}
    with pytest.raises(ConfigError, match="is not a reward model"):
        easydistill.run(config | {"output_dir": str(tmp_path / "other")})


@SLOW
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_every_family_learns_to_look(kind: str, family: str, tmp_path: Path) -> None:
    for name, training in (
        ("full", {}),
        ("lora", {"lora": {"r": 4}, "learning_rate": 5e-3, "num_train_epochs": 16}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        config = job(kind, folder, str(vision_model(family)), made_pairs(folder), **training)
        assert easydistill.run(config).exit_code == 0
        accuracy = {"dpo": "reward_accuracy", "reward_model": "pair_accuracy"}[kind]
        assert figures(folder)["after"][accuracy] > 0.8
