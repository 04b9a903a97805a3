"""What is made of images for models that see: five families, with their real processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import FAMILIES, store_of, vision_model

from easydistill.data.images import ImageStore
from easydistill.errors import DataError, EasyDistillError, ModelError
from easydistill.models.loading import full_config, load_tokenizer
from easydistill.models.multimodal import Processor, Vision, VisionProblem, is_multimodal, load_processor, processors

SIZES = ((40, 28), (16, 16), (20, 50))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return store_of(tmp_path_factory.mktemp("images"), [])[0]


@pytest.fixture(scope="module")
def digests(store: ImageStore) -> list[str]:
    return [store.add(picture(colour, size)) for colour, size in zip((RED, GREEN, BLUE), SIZES, strict=True)]


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request: pytest.FixtureRequest, store: ImageStore) -> Vision:
    return Vision(load_processor(str(vision_model(request.param))), store.path)


def chat(*digests: str, answer: str = "Yes.") -> list[dict[str, Any]]:
    """A question about images, with text between them."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What"}]
    for digest in digests:
        parts += [{"type": "image", "image": digest}, {"type": "text", "text": "and?"}]
    content: Any = parts if digests else "What?"
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def rendered(vision: Vision, *digests: str, answer: str = "Yes.") -> str:
    text: str = vision.processor.tokenizer.apply_chat_template(chat(*digests, answer=answer), tokenize=False)
    return text


def ids_of(vision: Vision, *digests: str, answer: str = "Yes.") -> list[int]:
    text = vision.expand(rendered(vision, *digests, answer=answer), digests)
    ids: list[int] = vision.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def images_of(store: ImageStore, digests: tuple[str, ...]) -> list[Any]:
    from PIL import Image

    return [Image.open(store.path(digest)) for digest in digests]


@pytest.mark.parametrize("images", [(0,), (1, 0), (2, 2)])
def test_expanded_ids_are_those_of_the_processor(
    seeing: Vision, store: ImageStore, digests: list[str], images: tuple[int, ...]
) -> None:
    own = tuple(digests[at] for at in images)
    made = seeing.processor.wrapped(text=[rendered(seeing, *own)], images=[images_of(store, own)])
    assert ids_of(seeing, *own) == list(made["input_ids"][0])


@pytest.mark.parametrize("images", [(), (0,), (1, 0), (2, 2)])
def test_placeholders_can_be_put_back(seeing: Vision, digests: list[str], images: tuple[int, ...]) -> None:
    own = tuple(digests[at] for at in images)
    bare = seeing.processor.tokenizer(rendered(seeing, *own), add_special_tokens=False)["input_ids"]
    assert seeing.marked(ids_of(seeing, *own), own) == bare
    if images:
        with pytest.raises(DataError, match="join with those around"):
            seeing.marked(bare, own)


def test_the_tensors_and_types_of_one_row_are_those_of_the_processor(
    seeing: Vision, store: ImageStore, digests: list[str]
) -> None:
    own = (digests[0], digests[2])
    made = seeing.processor.wrapped(text=[rendered(seeing, *own)], images=[images_of(store, own)], return_tensors="pt")
    ids = ids_of(seeing, *own)
    found = {**seeing.batch([(ids, own)]), **seeing.type_ids(torch.tensor([ids]))}
    assert found
    assert set(found) == {name for name in made if name in seeing.processor.inputs} - {"input_ids", "attention_mask"}
    for name, value in found.items():
        assert torch.equal(value, made[name]), name


def test_rows_together_have_the_images_of_each_alone(seeing: Vision, digests: list[str]) -> None:
    rows = [(ids_of(seeing, *own), own) for own in ((digests[0],), (), (digests[1], digests[2]))]
    together = seeing.batch(rows)
    alone = [seeing.batch([row]) for row in rows]
    assert alone[1] == {}
    for name, value in together.items():
        if name.startswith("pixel") and value.shape[0] == 1:
            # Idefics3: the images of a row beside each other.
            assert torch.equal(value, torch.cat([alone[0][name], alone[2][name]], dim=1))
        else:
            assert torch.equal(value, torch.cat([alone[0][name], alone[2][name]]))


def test_ids_that_were_made_for_other_images_are_refused(seeing: Vision, digests: list[str]) -> None:
    ids = ids_of(seeing, digests[0])
    with pytest.raises(DataError, match="rendered for others"):
        seeing.batch([(ids, (digests[0], digests[1]))])
    with pytest.raises(DataError, match="rendered for others"):
        seeing.batch([(ids, ())])


def test_as_many_placeholders_as_images(seeing: Vision, digests: list[str]) -> None:
    text = rendered(seeing, digests[0])
    for wrong in ((), (digests[0], digests[1])):
        with pytest.raises(VisionProblem, match="wrote one placeholder") as caught:
            seeing.expand(text, wrong)
        assert caught.value.reason == "image_count"
    assert seeing.expand("Nothing to see.", ()) == "Nothing to see."


def test_texts_that_hold_a_placeholder_are_refused(seeing: Vision, digests: list[str]) -> None:
    for reserved in seeing.processor.reserved:
        with pytest.raises(VisionProblem) as caught:
            seeing.check_text(["Fine.", f"What is {reserved}?"])
        assert caught.value.reason == "image_placeholder"
        with pytest.raises(VisionProblem):
            seeing.expand(rendered(seeing, digests[0], answer=reserved), (digests[0],))
    seeing.check_text(["Fine."])


def test_each_size_is_processed_once(seeing: Vision, store: ImageStore, digests: list[str]) -> None:
    calls: list[Any] = []
    fresh = Vision(seeing.processor, store.path)
    original = Processor.called
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processor, "called", lambda *args, **options: (calls.append(1), original(*args, **options))[1])
        same_size = store.add(picture(BLUE, SIZES[0]))
        for digest in (digests[0], digests[0], same_size):
            fresh.expand(rendered(fresh, digest), (digest,))
    assert len(calls) == 1


@pytest.mark.parametrize("left", [0, 50])
def test_a_damaged_copy_is_no_fault_of_a_row(left: int, tmp_path: Path) -> None:
    store, (digest,) = store_of(tmp_path, [picture(RED, (20, 20))])
    vision = Vision(load_processor(str(vision_model("llava"))), store.path)
    path = store.path(digest)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(EasyDistillError, match=r"copy of an image is damaged.*\n.*remove the file") as stopped:
        vision.expand(vision.processor.mark, [digest])
    assert not isinstance(stopped.value, DataError), "the row would be rejected, and training go on without it"


def test_a_saved_processor_is_the_same(seeing: Vision, store: ImageStore, digests: list[str], tmp_path: Path) -> None:
    from transformers import AutoConfig

    family = next(name for name in FAMILIES if vision_model(name).name in str(seeing.processor.tokenizer.name_or_path))
    seeing.processor.save(tmp_path)
    AutoConfig.from_pretrained(vision_model(family)).save_pretrained(tmp_path)
    again = Vision(load_processor(str(tmp_path)), store.path)
    assert again.processor.identity() == seeing.processor.identity()
    assert again.processor.tokenizer.chat_template == seeing.processor.tokenizer.chat_template
    assert ids_of(again, digests[0]) == ids_of(seeing, digests[0])


def test_settings_change_the_identity(seeing: Vision) -> None:
    again = load_processor(str(seeing.processor.tokenizer.name_or_path))
    assert again.identity() == seeing.processor.identity()
    again.wrapped.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert again.identity() != seeing.processor.identity()


def test_models_of_text_are_told_apart(tiny_model: Path) -> None:
    assert not is_multimodal(full_config(str(tiny_model)))
    assert all(is_multimodal(full_config(str(vision_model(family)))) for family in FAMILIES)
    assert not is_multimodal(full_config(str(vision_model("llava"))).get_text_config())
    with pytest.raises(ModelError, match="reads text alone"):
        load_processor(str(tiny_model))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_settings_for_videos_are_kept(family: str, tmp_path: Path) -> None:
    """The contract of `without_videos`: transformers makes its processor of the parts that `get_attributes` names."""
    source = tmp_path / "source"
    shutil.copytree(vision_model(family), source)
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3.0}
    described = json.loads((source / "processor_config.json").read_text())
    del described["video_processor"]
    (source / "processor_config.json").write_text(json.dumps(described))
    load_processor(str(source)).save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["video_processor"] == saved["image_processor"], "as transformers reads such files"
    (source / "video_preprocessor_config.json").write_text(json.dumps(settings))
    load_processor(str(source)).save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["processor_class"] == type(load_processor(str(source)).wrapped).__name__
    assert saved["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
    assert {name: saved["video_processor"][name] for name in settings} == settings


def test_the_template_of_an_old_processor_is_the_tokenizers_too(tmp_path: Path) -> None:
    shutil.copytree(vision_model("llava"), tmp_path, dirs_exist_ok=True)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{# old #}" + template}))
    for tokenizer in (load_tokenizer(str(tmp_path)), load_processor(str(tmp_path)).tokenizer):
        assert tokenizer.chat_template == "{# old #}" + template


def test_a_processor_that_is_not_understood_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model would not take, or would be told otherwise of, is nothing to go on with in silence."""
    reference = str(vision_model("qwen2_5_vl"))
    with monkeypatch.context() as patch:
        patch.setattr(processors, "_inputs", lambda config: frozenset({"pixel_values", "mm_token_type_ids"}))
        with pytest.raises(ModelError, match="returns image_grid_thw, which the model does not take"):
            load_processor(reference)
    kind = type(load_processor(reference).wrapped).__mro__[1]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "create_mm_token_type_ids", lambda self, rows: [[0] * len(row) for row in rows])
        with pytest.raises(ModelError, match="mm_token_type_ids that do not say"):
            load_processor(reference)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", lambda self, **options: [][0])
        with pytest.raises(ModelError, match="fails at a small image"):
            load_processor(reference)
