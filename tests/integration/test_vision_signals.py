"""Signals of a teacher that sees: of the images that the student sees, and of no others."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.integration.test_vision_jobs import figures, made_rows, weights
from tests.support.pictures import GREEN, RED, picture
from tests.support.vision_llm import Llm
from tests.support.vision_models import (
    END,
    FAMILIES,
    make_model,
    make_processor,
    mark,
    save_processor,
    vision_model,
)

import easydistill
from easydistill.config.models import ModelsConfig
from easydistill.data.chat import ChatRenderer
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.messages import answer_message
from easydistill.data.reading import read_samples
from easydistill.errors import ConfigError, DataError, TeacherError
from easydistill.methods.distil.rescore import scorer_of_store
from easydistill.methods.shared.sight import other_sight
from easydistill.models.draws import SeededSampler
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.models.sampling import generate_batch
from easydistill.signals import from_vllm
from easydistill.signals.config import TopKSignals
from easydistill.signals.extract import SignalShape
from easydistill.signals.score import ModelScorer, RowToScore
from easydistill.signals.store import SignalStore, StoreManifest, token_hash, write_shard
from easydistill.signals.verify import verify


@cache
def processor(family: str) -> Any:
    return load_processor(str(vision_model(family)))


def rendered(family: str, store: ImageStore, *images: str) -> RowToScore:
    chats = ChatRenderer(
        processor(family).tokenizer,
        frozenset({processor(family).tokenizer.convert_tokens_to_ids(END)}),
        images=Vision(processor(family), store.path),
    )
    content: Any = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "Which?"}]
    row = chats.render([{"role": "user", "content": content if images else "Which?"}, answer_message("This one.")])
    return RowToScore("row", row.ids_T, row.learned, images=row.images)


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_are_of_what_the_teacher_sees(family: str, tmp_path: Path) -> None:
    """Against the model's own forward, in a batch with rows of no and of two images."""
    store = ImageStore(tmp_path / "images")
    red, green = store.add(picture(RED, (24, 24))), store.add(picture(GREEN, (24, 24)))
    vocabulary = len(processor(family).tokenizer)
    config = TopKSignals(kind="top_k", k=vocabulary, dtype="float32")
    model = make_model(family, processor(family).tokenizer)
    reference = str(vision_model(family))
    scorer = ModelScorer([reference], [1.0], config, vocabulary, 1.0, models=[model], images=store.path)
    rows = [rendered(family, store, *images) for images in ((), (red,), (green,), (green, red))]
    found = scorer.score(rows)
    vision = Vision(processor(family), store.path)
    for row, scored in zip(rows, found, strict=True):
        ids = torch.tensor(np.asarray(row.ids))[None].long()
        with torch.inference_mode():
            logits = model(input_ids=ids, **vision.batch([(row.ids, row.images)]), **vision.type_ids(ids)).logits
        own = logits[0, :-1].float().log_softmax(-1)[torch.tensor(np.asarray(row.learned)[1:])]
        target = own.gather(1, ids[0, 1:][torch.tensor(np.asarray(row.learned)[1:])][:, None])[:, 0]
        assert np.allclose(scored.signal.target_logprob_N, target.numpy(), atol=1e-4)
        assert scored.images == row.images
    # The tokens are equal, and what was seen is not.
    assert np.array_equal(rows[1].ids, rows[2].ids)
    assert not np.allclose(found[1].signal.target_logprob_N, found[2].signal.target_logprob_N, atol=1e-3)


def test_a_store_is_of_its_images(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    red, green = store.add(picture(RED, (24, 24))), store.add(picture(GREEN, (24, 24)))
    vocabulary = len(processor("llava").tokenizer)
    config = TopKSignals(kind="top_k", k=4, dtype="float32")
    models = [make_model("llava", processor("llava").tokenizer)]
    scorer = ModelScorer([str(vision_model("llava"))], [1.0], config, vocabulary, 1.0, models=models, images=store.path)
    codec = SignalShape.of(config, vocabulary).codec(vocabulary)
    directory = tmp_path / "signals"
    directory.mkdir()
    row = rendered("llava", store, red)
    write_shard(directory / "shard-00000.safetensors", scorer.score([row]), codec)
    StoreManifest.of(directory, codec, {}, 1).write(directory)
    kept = SignalStore(directory)
    assert kept.images("row") == (red,) and kept.has_images
    kept.read("row", row.ids, row.learned, (red,))
    for others in ((green,), ()):
        with pytest.raises(DataError, match="made for other images"):
            kept.read("row", row.ids, row.learned, others)


def test_hashes_of_text_stay_what_they_were() -> None:
    ids, learned = [1, 2, 3], [False, True, True]
    plain = hashlib.sha256(np.array(ids, "<i8").tobytes() + bytes(learned)).digest()[:16]
    assert token_hash(ids, learned) == token_hash(ids, learned, ()) == plain
    assert len({token_hash(ids, learned, images) for images in ((), ("sha256:a",), ("sha256:b",))}) == 3


# --- through a job --------------------------------------------------------------------------------------------------


def white_box(folder: Path, teacher: Path, student: Path, **values: Any) -> dict[str, Any]:
    (folder / "rows.json").write_text(json.dumps(made_rows(folder)))
    return {
        "job_type": "white_box_kd_local",
        "output_dir": str(folder / "run"),
        "dataset": {"labeled_path": str(folder / "rows.json")},
        "models": {"teacher": str(teacher), "student": str(student)},
        "training": {
            "num_train_epochs": 6,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 3e-3,
            "max_length": 256,
        },
        "distillation": {"kd_ratio": 1.0},
        "signals": {"kind": "top_k", "k": 64, "dtype": "float32"},
        "evaluation": {"heldout": 10, "max_new_tokens": 4},
        **values,
    }


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a white-box job, and its config."""
    folder = tmp_path_factory.mktemp("white")
    config = white_box(folder, vision_model("llava", 1), vision_model("llava"))
    assert easydistill.run(config).exit_code == 0
    return folder, config


def store_of_run(folder: Path) -> SignalStore:
    return SignalStore(next((folder / "run" / "stages").glob("*-score")) / "signals")


def test_a_student_comes_closer_to_a_teacher_that_sees(distilled: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = distilled
    found = figures(folder)
    assert found["after"]["kl"] < found["before"]["kl"] / 1.5 and found["after"]["agreement"] is not None
    store = store_of_run(folder)
    assert store.has_images and sum(bool(store.images(name)) for name in store.ids) >= len(store.ids) - 1
    scorer, tolerance = scorer_of_store(store)
    assert verify(store, scorer, 40, tolerance, 0, lambda count: None).good


def test_a_changed_image_is_scored_and_learned_again(distilled: tuple[Path, dict[str, Any]]) -> None:
    """Also of rows that bring their own ids, whose tokens stay the same."""
    folder, config = distilled
    assert not easydistill.run(config).fresh
    kept, before = weights(folder), store_of_run(folder)
    name = next(name for name in before.ids if before.images(name))
    path = folder / f"{name.removeprefix('r')}.png"
    old = path.read_bytes()
    path.write_bytes(picture((250, 250, 0), (24, 24)))
    assert easydistill.run(config).fresh
    after = store_of_run(folder)
    assert after.tokens(name) == before.tokens(name) and after.images(name) != before.images(name)
    assert any((value != kept[part]).any() for part, value in weights(folder).items())
    path.write_bytes(old)


def test_a_published_store_refuses_other_images(distilled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = distilled
    shutil.copytree(store_of_run(folder).directory, tmp_path / "signals")
    with pytest.raises(DataError, match="they are only in the directory of the run"):
        scorer_of_store(SignalStore(tmp_path / "signals"))
    config = white_box(tmp_path, vision_model("llava", 1), vision_model("llava"), evaluation={"enabled": False})
    del config["models"]["teacher"]
    config["dataset"]["logits_path"] = str(tmp_path / "signals")
    scored = store_of_run(folder).ids
    rows = [row for row in made_rows(tmp_path) if row["id"] in scored]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / rows[0]["images"][0]).write_bytes(picture((0, 250, 250), (24, 24)))
    with pytest.raises(DataError, match=f"row {rows[0]['id']} was made for other images"):
        easydistill.run(config)


def test_teachers_that_see_otherwise_are_refused_before_the_run(tmp_path: Path, tiny_model: Path) -> None:
    models = ModelsConfig(student=str(vision_model("llava")))
    assert other_sight(models, str(vision_model("llava", 1))) == []
    ((problem, _),) = other_sight(models, str(tiny_model))
    assert "reads text alone" in problem
    coarse = tmp_path / "coarse"
    shutil.copytree(vision_model("llava"), coarse)
    settings = json.loads((coarse / "processor_config.json").read_text())
    settings["image_processor"]["crop_size"] = {"height": 8, "width": 8}
    (coarse / "processor_config.json").write_text(json.dumps(settings))
    ((problem, _),) = other_sight(models, str(coarse))
    assert "as 16 image tokens" in problem and "this teacher as 4" in problem
    with pytest.raises(ConfigError, match="this teacher as 4"):
        easydistill.run(white_box(tmp_path, coarse, vision_model("llava")))
    assert mark("llava") == "<image>"


def test_the_students_own_answers_are_to_the_images(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "distillation": {"distillation_type": "contrastive"},
        "inference": {"backend": "transformers", "max_new_tokens": 6, "temperature": 0, "dtype": "float32"},
        "evaluation": {"enabled": False},
    }
    config = white_box(tmp_path, vision_model("llava", 1), vision_model("llava"), **values)
    assert easydistill.run(config).exit_code == 0
    path = next((tmp_path / "run" / "stages").glob("*-rollout")) / "rollouts.parquet"
    own, rejected = read_samples(path, labelled=True, images=ImageReader(ImageStore(tmp_path / "run" / "images")))
    assert not rejected
    vision = Vision(processor("llava"), ImageStore(tmp_path / "run" / "images").path)
    tokenizer = processor("llava").tokenizer
    end = tokenizer.convert_tokens_to_ids(END)
    chats = ChatRenderer(tokenizer, frozenset({end}), images=vision)
    model = load_model(str(vision_model("llava")), torch.float32)
    seeing = [sample for sample in own if sample.images]
    assert len(seeing) > 1
    for sample in seeing:
        (answer,) = generate_batch(
            model,
            [chats.prompt_ids(sample.prompt_chat)],
            frozenset({end}),
            6,
            SeededSampler([0], temperature=[0.0]),
            vision=vision,
            images=[sample.images],
        )
        assert sample.messages[-1]["content"] == tokenizer.decode(answer.ids)
    store = store_of_run(tmp_path)
    assert all(store.images(sample.id) == sample.images for sample in seeing)


# --- vLLM -----------------------------------------------------------------------------------------------------------


def test_vllm_scores_the_tokens_of_the_student_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore(tmp_path / "images")
    red = store.add(picture(RED, (24, 24)))
    row = rendered("qwen2_5_vl", store, red)
    vision = Vision(processor("qwen2_5_vl"), store.path)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **values: None))
    llm = Llm([*map(int, row.ids)])
    monkeypatch.setattr(from_vllm, "_engine", lambda *given: llm)
    config = TopKSignals(kind="top_k", k=1, backend="vllm")
    scorer = from_vllm.VllmScorer("teacher", config, len(processor("qwen2_5_vl").tokenizer), 100, vision=vision)
    (scored,) = scorer.score([row])
    assert scored.images == (red,) and (scored.signal.target_logprob_N == -1.0).all()
    (prompt,) = llm.prompts
    (token,) = processor("qwen2_5_vl").image_token_ids
    assert prompt["prompt_token_ids"].count(token) == 1 < list(row.ids).count(token)
    assert prompt["multi_modal_uuids"] == {"image": [red]}
    assert prompt["multi_modal_data"]["image"][0].getpixel((0, 0)) == RED
    llm.reads = llm.reads[:-1]
    with pytest.raises(TeacherError, match="as other tokens than the student"):
        scorer.score([row])


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl"])
def test_signals_of_vllm_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """vLLM's classes for vision models need torchvision."""
    pytest.importorskip("vllm")
    pytest.importorskip("torchvision")
    store = ImageStore(tmp_path / "images")
    red, green = store.add(picture(RED, (24, 24))), store.add(picture(GREEN, (40, 28)))
    rows = [rendered(family, store, *images) for images in ((), (red,), (green,), (green, red))]
    # Attention of vLLM on a CPU knows no narrower heads.
    wide = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    made = make_processor(family)
    make_model(family, made.tokenizer, **wide).save_pretrained(tmp_path / "teacher")
    save_processor(family, made, tmp_path / "teacher")
    teacher, vocabulary = str(tmp_path / "teacher"), len(made.tokenizer)
    config = TopKSignals(kind="top_k", k=20, dtype="float32")
    own = ModelScorer([teacher], [1.0], config, vocabulary, 1.0, images=store.path).score(rows)
    vision = Vision(processor(family), store.path)
    longest = max(len(row.ids) for row in rows)
    scorer = from_vllm.VllmScorer(
        teacher, config.model_copy(update={"backend": "vllm"}), vocabulary, longest, vision=vision
    )
    found = scorer.score(rows)
    scorer.close()
    for ours, theirs in zip(own, found, strict=True):
        assert np.allclose(ours.signal.target_logprob_N, theirs.signal.target_logprob_N, atol=1e-3)
