"""Jobs whose student's images go through its vision tower once."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_vision_jobs import IMAGES, job, made_rows, weights
from tests.support.killed import killed_at
from tests.support.vision_models import FAMILIES, vision_model

import easydistill
from easydistill.errors import ConfigError
from easydistill.methods.sft import image_features
from easydistill.methods.shared import sight
from easydistill.models.multimodal import feature_files
from easydistill.models.multimodal.feature_files import FeatureFiles


def short_job(folder: Path, family: str, cache: Any, **training: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    rows = made_rows(folder)
    rows[3]["images"] = rows[3]["images"] * 2
    rows[3]["instruction"] = "<image> and <image>\nColour?"
    config = job(folder, family, rows, **{"num_train_epochs": 2, "cache_image_features": cache, **training})
    return {**config, "evaluation": {"enabled": False}}


def trained(folder: Path, family: str, cache: Any, **training: Any) -> dict[str, torch.Tensor]:
    assert easydistill.run(short_job(folder, family, cache, **training)).exit_code == 0
    return weights(folder)


def kept(folder: Path) -> list[Path]:
    return list((folder / "run" / "features").glob("*/values.bin"))


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.parametrize(
    ("family", "training"),
    [
        ("qwen3_vl", {}),
        *(pytest.param(family, {}, marks=pytest.mark.slow) for family in FAMILIES if family != "qwen3_vl"),
        *(pytest.param(family, {"lora": {"r": 4}}, marks=pytest.mark.slow) for family in FAMILIES),
        *(pytest.param(family, {"bf16": True}, marks=pytest.mark.slow) for family in FAMILIES),
        pytest.param("llava", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("llava", {"lora": {"r": 4}, "gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("gemma3", {"dataloader_num_workers": 1}, marks=pytest.mark.slow),
        pytest.param(
            "idefics3", {"max_tokens_per_batch": 400, "per_device_train_batch_size": 1}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_student_is_the_one_of_pixels(family: str, training: dict[str, Any], tmp_path: Path) -> None:
    pixels = trained(tmp_path / "pixels", family, False, **training)
    assert_equal(pixels, trained(tmp_path / "features", family, True, **training))
    assert kept(tmp_path / "features") and not kept(tmp_path / "pixels")
    # It is the same run: the setting changes nothing that is learned.
    assert not easydistill.run(short_job(tmp_path / "pixels", family, "auto", **training)).fresh


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", [pytest.param("between", marks=pytest.mark.slow), "within"])
def test_a_run_that_is_killed_while_it_computes_features_goes_on(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(tmp_path / "whole", "llava", True)
    (values,) = kept(tmp_path / "whole")
    added, groups = FeatureFiles.add, []

    def dies(self: FeatureFiles, group: Any) -> None:
        groups.append(list(group))
        if len(groups) == 2:
            if when == "within":
                # Bytes without their line, and half a line.
                with (self._folder / "values.bin").open("ab") as file:
                    file.write(b"\1" * 1000)
                with (self._folder / "index.jsonl").open("ab") as file:
                    file.write(b'{"end": 3, "im')
            raise Killed
        added(self, group)

    with monkeypatch.context() as patched:
        patched.setattr(FeatureFiles, "add", dies)
        with pytest.raises(Killed):
            easydistill.run(short_job(tmp_path / "killed", "llava", True))
    again: list[Any] = []
    monkeypatch.setattr(FeatureFiles, "add", lambda self, group: (again.append(list(group)), added(self, group)))
    assert_equal(expected, trained(tmp_path / "killed", "llava", True))
    assert again[0] == groups[1] and groups[0] not in again
    (resumed,) = kept(tmp_path / "killed")
    assert resumed.read_bytes() == values.read_bytes()


def test_a_run_that_is_killed_while_it_trains_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"save_steps": 2, "num_train_epochs": 3}
    expected = trained(tmp_path / "whole", "idefics3", False, **settings)
    config = short_job(tmp_path / "killed", "idefics3", "auto", **settings)
    with killed_at(monkeypatch, 5):
        easydistill.run(config)
    assert kept(tmp_path / "killed")
    monkeypatch.setattr(FeatureFiles, "add", lambda self, group: pytest.fail("they are there"))
    easydistill.run(config)
    assert_equal(expected, weights(tmp_path / "killed"))


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"save_steps": 2, "num_train_epochs": 3}
    config = short_job(tmp_path, "llava", True, **settings)
    with killed_at(monkeypatch, 3):
        easydistill.run(config)
    (values,) = kept(tmp_path)
    before = values.read_bytes()
    values.write_bytes(before[:1000])
    # What is missing is computed again.
    easydistill.run(config)
    assert values.read_bytes() == before


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"train_parts": ["language", "vision"]}, "change with the vision tower"),
        ({"train_parts": ["vision"], "lora": {"r": 2}}, "change with the vision tower"),
    ],
)
def test_features_of_a_tower_that_is_trained_are_refused(training: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        easydistill.validate(short_job(tmp_path, "llava", True, **training))


def test_a_tower_that_is_trained_sees_pixels(tmp_path: Path) -> None:
    trained(tmp_path, "llava", "auto", train_parts=["language", "vision"], max_steps=1)
    assert not kept(tmp_path)


def random_tower(tmp_path: Path) -> Path:
    """A model whose tower has dropout."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    made, source = tmp_path / "random", vision_model("llava")
    model = AutoModelForImageTextToText.from_pretrained(source)
    model.config.vision_config.attention_dropout = 0.2
    model.save_pretrained(made)
    AutoProcessor.from_pretrained(source).save_pretrained(made)
    return made


def test_a_random_tower_sees_pixels(tmp_path: Path) -> None:
    config = short_job(tmp_path, "llava", "auto", max_steps=1)
    config["models"] = {"student": str(random_tower(tmp_path))}
    assert easydistill.run(config).exit_code == 0
    assert not kept(tmp_path)
    config["training"] |= {"cache_image_features": True, "max_steps": 2}
    with pytest.raises(ConfigError, match=r"training\.cache_image_features: the vision tower is random in training"):
        easydistill.run(config)


def test_images_that_are_seen_once_are_seen_as_pixels(tmp_path: Path) -> None:
    trained(tmp_path, "llava", "auto", num_train_epochs=1)
    assert not kept(tmp_path)


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_features, "DISK_SHARE", 1e-12)
    trained(tmp_path, "llava", "auto", max_steps=1)
    assert not kept(tmp_path)


def test_features_are_told_in_no_record(tmp_path: Path) -> None:
    trained(tmp_path, "llava", True)
    (stage,) = (tmp_path / "run" / "stages").glob("*-train")
    manifest = json.loads((stage / "manifest.json").read_text())
    assert feature_files.FOLDER not in json.dumps(manifest)
    assert "features/" not in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize("lora", [None, pytest.param({"r": 4}, marks=pytest.mark.slow)])
def test_what_features_take_is_foretold(lora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = short_job(tmp_path, "qwen3_vl", "auto", lora=lora, bf16=False)
    assert not any("features" in note for stage in easydistill.plan(config) for note in stage.notes)
    monkeypatch.setattr(sight, "MUCH_DISK", 1)
    told: list[float] = []
    bytes_of = sight._features_bytes
    monkeypatch.setattr(sight, "_features_bytes", lambda *of, **so: (told.append(n) or n for n in bytes_of(*of, **so)))
    notes = [note for stage in easydistill.plan(config) for note in stage.notes if "features" in note]
    assert len(notes) == 1 and f"features of {IMAGES} images" in notes[0]
    assert easydistill.run(config).exit_code == 0
    (values,) = kept(tmp_path)
    assert sum(told[:IMAGES]) == pytest.approx(values.stat().st_size)
    config["training"]["cache_image_features"] = False
    assert not any("features" in note for stage in easydistill.plan(config) for note in stage.notes)


@pytest.mark.parametrize(
    "family", ["qwen2_5_vl", *(pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES if each != "qwen2_5_vl")]
)
def test_a_student_is_measured_as_on_pixels(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after, teacher and student: figures, answers, and what a student gains by its own image."""
    found = []
    for name in ("features", "pixels"):
        if name == "pixels":
            monkeypatch.setattr(image_features, "seen_once", lambda model, vision, *others: nullcontext(vision))
        config = short_job(tmp_path / name, family, "auto")
        config |= {"job_type": "white_box_kd_local", "evaluation": {"heldout": 10, "max_new_tokens": 4}}
        config["models"]["teacher"] = str(vision_model(family, seed=1))
        config["training"]["cache_image_features"] = False
        config["training"].pop("max_length")
        config["distillation"] = {"kd_ratio": 0.5, "max_seq_length": 256}
        assert easydistill.run(config).exit_code == 0
        (stage,) = (tmp_path / name / "run" / "stages").glob("*-evaluate")
        found.append([(stage / file).read_text() for file in ("metrics.json", "answers.jsonl", "disagreement.json")])
    assert found[0] == found[1] and json.loads(found[0][0])["after"]["image_gain"] is not None
    # The student before and after has one tower, the teacher another.
    assert len(kept(tmp_path / "features")) == 2 and not kept(tmp_path / "pixels")
