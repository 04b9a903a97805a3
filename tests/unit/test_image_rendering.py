"""Chats with images → tokens: with the processors, tokenizers and templates of five families."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import END, FAMILIES, make_model, mark, vision_model

from easydistill.config.models import ModelsConfig
from easydistill.data.chat import ChatRenderer, ImageRefused, Rendered
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.messages import Message, answer_message, with_text
from easydistill.data.records import Sample
from easydistill.errors import DataError
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.feeding import Feed
from easydistill.methods.shared.rows import rendered_one_by_one
from easydistill.methods.shared.sight import ImageSizes, sees_images, sight_of
from easydistill.models.limits import Limits
from easydistill.models.multimodal import Vision, load_processor


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return ImageStore(tmp_path_factory.mktemp("run") / "images")


@pytest.fixture(scope="module")
def digests(store: ImageStore) -> list[str]:
    return [store.add(picture(RED, (40, 28))), store.add(picture(GREEN, (16, 16))), store.add(picture(BLUE, (16, 16)))]


@cache
def processor(family: str) -> Any:
    return load_processor(str(vision_model(family)))


def renderer(family: str, store: ImageStore, template: str | None = None, **options: Any) -> ChatRenderer:
    found = processor(family)
    ends = frozenset({found.tokenizer.convert_tokens_to_ids(END)})
    return ChatRenderer(found.tokenizer, ends, template, images=Vision(found, store.path), **options)


def asked(*parts: str, role: str = "user") -> Message:
    """A message; a part is a text or a digest."""
    content: list[Any] = [
        {"type": "image", "image": part} if part.startswith("sha256:") else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": role, "content": content if any(part["type"] == "image" for part in content) else parts[0]}


def learned_text(chats: ChatRenderer, row: Rendered) -> str:
    return str(chats.tokenizer.decode(row.ids_T[row.mask_T]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_the_processor(family: str, store: ImageStore, digests: list[str]) -> None:
    red, green, _ = digests
    chats = renderer(family, store)
    messages = [asked("Compare ", red, " with ", green, "."), answer_message("No."), asked("And now?")]
    shown = [Image.open(store.path(digest)) for digest in (red, green)]
    text = chats.text(messages, add_generation_prompt=True)
    assert text.count(mark(family)) == 2
    expected = processor(family).wrapped(text=[text], images=[shown])["input_ids"][0]
    assert chats.prompt_ids(messages) == list(expected)
    whole = chats.render([*messages, answer_message("Yes.")])
    assert whole.images == (red, green)
    assert whole.ids[: len(expected)] == list(expected)
    assert learned_text(chats, whole) == f"No.{END}Yes.{END}"
    assert chats.tokenizer.decode(whole.ids[len(expected) :]).startswith(f"Yes.{END}")
    assert not np.isin(whole.ids_T[whole.mask_T], processor(family).image_token_ids).any()


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize(
    "contents",
    [("{}", "Look."), ("Look.", "{}"), ("{}",), ("{}", "{}", "both"), ("a", "{}", "b", "{}", "c"), ("Only text.",)],
    ids=" ".join,
)
def test_turns_are_found_wherever_images_stand(
    family: str, contents: tuple[str, ...], store: ImageStore, digests: list[str]
) -> None:
    shown = iter(digests)
    parts = [next(shown) if part == "{}" else part for part in contents]
    chats = renderer(family, store)
    row = chats.render([{"role": "system", "content": "Be brief."}, asked(*parts), answer_message("So it is.")])
    assert learned_text(chats, row) == f"So it is.{END}"
    assert row.lost_turns == 0 and row.missing == () and len(row.images) == contents.count("{}")
    assert row.ids[: len(chats.prompt_ids([{"role": "system", "content": "Be brief."}, asked(*parts)]))] == (
        chats.prompt_ids([{"role": "system", "content": "Be brief."}, asked(*parts)])
    )


def test_rows_with_and_without_images_are_rendered_together(store: ImageStore, digests: list[str]) -> None:
    chats = renderer("llava", store)
    rows = [[asked(digests[n % 3], "?") if n % 2 else asked("?"), answer_message(str(n))] for n in range(300)]
    found = [row for row in chats.render_many(rows) if isinstance(row, Rendered)]
    assert len(found) == 300
    for n, row in enumerate(found):
        assert row == chats.render(rows[n])
        assert row.images == ((digests[n % 3],) if n % 2 else ())


def test_a_text_row_has_the_tokens_that_it_has_for_a_model_of_text(store: ImageStore) -> None:
    seeing = renderer("llava", store)
    blind = ChatRenderer(seeing.tokenizer, seeing.eos_ids)
    chat = [asked("Why?"), answer_message("Because.", "Let me think.")]
    assert seeing.render(chat) == blind.render(chat)


def reason(chats: ChatRenderer, chat: list[Message], max_length: int | None = None) -> str:
    with pytest.raises(ImageRefused) as refused:
        chats.render(chat, max_length)
    return refused.value.reason


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_would_be_taken_for_an_image(family: str, store: ImageStore, digests: list[str]) -> None:
    chats, written = renderer(family, store), f"say {mark(family)}"
    for chat in (
        [asked(written), answer_message("Yes.")],
        [asked(digests[0], written), answer_message("Yes.")],
        [asked(digests[0], "?"), answer_message(written)],
        [asked(digests[0], "?"), answer_message("Yes.", written)],
    ):
        assert reason(chats, chat) == "image_placeholder"


def test_a_template_that_does_not_show_every_image_once(store: ImageStore, digests: list[str]) -> None:
    text_alone = "{% for m in messages %}{{ m.content if m.content is string else 'x' }}{{ eos_token }}{% endfor %}"
    chat = [asked(digests[0], "?"), answer_message("Yes.")]
    assert reason(renderer("llava", store, text_alone), chat) == "image_not_shown"
    assert reason(renderer("llava", store, "{{ message.content }}{{ message.output }}"), chat) == "image_not_shown"


def test_images_that_nobody_would_see(store: ImageStore, digests: list[str]) -> None:
    seeing = renderer("llava", store)
    chat = [asked(digests[0], "?"), answer_message("Yes.")]
    assert reason(ChatRenderer(seeing.tokenizer, seeing.eos_ids), chat) == "image_not_supported"
    drawn = [asked("Draw."), asked("Here:", digests[0], role="assistant")]
    assert reason(seeing, drawn) == "image_not_supported"
    context: Message = {**drawn[1], "weight": 0}
    row = seeing.render([drawn[0], context, asked("Thanks."), answer_message("Welcome.")])
    assert row.images == (digests[0],) and learned_text(seeing, row) == f"Welcome.{END}"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_cut_goes_through_an_image_or_before_it(family: str, store: ImageStore, digests: list[str]) -> None:
    chats = renderer(family, store)
    chat = [asked(digests[0], "?"), answer_message("A."), asked(digests[1], "And?"), answer_message("B.")]
    whole = chats.render(chat)
    last = int(np.flatnonzero(np.isin(whole.ids_T, processor(family).image_token_ids))[-1])
    cut = chats.render(chat, last + 1)
    assert cut.truncated and cut.images == whole.images and cut.ids == whole.ids[: last + 1]
    for length in (last, last - 1, 5):
        assert reason(chats, chat, length) == "image_truncated"
    samples = [Sample("a", tuple(chat)), Sample("b", (asked("?"), answer_message("Yes.")))]
    first, second = rendered_one_by_one(chats, samples, last, "train", Limits())
    assert (first.id, first.reason) == ("a", "image_truncated")  # type: ignore[union-attr]
    assert second[0].id == "b"  # type: ignore[index]


def test_thoughts_go_into_the_text_and_images_stay(store: ImageStore, digests: list[str]) -> None:
    context: Message = {**asked("Here:", digests[0], role="assistant"), "weight": 0, "reasoning_content": "I draw."}
    chat = [asked("Draw."), context, asked("Thanks."), answer_message("Welcome.", "Be kind.")]
    chats = renderer("llava", store, thoughts="inline")
    row = chats.render(chat)
    assert row.images == (digests[0],)
    assert learned_text(chats, row) == f"<think>\nBe kind.\n</think>\n\nWelcome.{END}"
    assert "<think>\nI draw.\n</think>\n\nHere:" in chats.text(chat, add_generation_prompt=False)


def test_a_message_with_another_text_keeps_its_images() -> None:
    image: Any = {"type": "image", "image": "sha256:0"}
    assert with_text({"role": "user", "content": "a"}, str.upper) == {"role": "user", "content": "A"}
    parts: Any = [image, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    found = with_text({"role": "user", "content": parts}, str.upper)
    assert found["content"] == [image, {"type": "text", "text": "A"}, {"type": "text", "text": "b"}]
    assert with_text({"role": "user", "content": [image]}, lambda text: f"{text}x")["content"] == [
        {"type": "text", "text": "x"},
        image,
    ]


# --- before a run ---------------------------------------------------------------------------------------------------


def test_tokens_are_foreseen_from_sizes_alone(store: ImageStore, digests: list[str], tmp_path: Path) -> None:
    turned = picture(RED, (30, 90), "JPEG", exif=exif(6))
    (tmp_path / "turned.jpg").write_bytes(turned)
    sizes, kept = ImageSizes(), ImageStore(tmp_path / "images")
    for family in FAMILIES:
        models = ModelsConfig(student=str(vision_model(family)))
        assert sees_images(models)
        before, then = sight_of(models, sizes.path), Vision(processor(family), kept.path)
        assert before is not None
        for reader, vision in ((ImageReader(sizes), before), (ImageReader(kept), then)):
            digest = reader.digest("turned.jpg", tmp_path)
            assert vision.image_tokens(digest) == then.image_tokens(kept.add(turned))
        # Also of a folder of images.
        assert ImageReader(sizes).digest(str(store.path(digests[0])), tmp_path) == digests[0]
        assert before.image_tokens(digests[0]) == Vision(processor(family), store.path).image_tokens(digests[0])


def exif(orientation: int) -> bytes:
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def test_a_model_of_text_foresees_no_images(tiny_model: Path) -> None:
    models = ModelsConfig(student=str(tiny_model))
    assert not sees_images(models) and sight_of(models, ImageSizes().path) is None


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_without_rows_computes_one_with_its_images(family: str, store: ImageStore, digests: list[str]) -> None:
    import torch

    from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss

    chats = renderer(family, store)
    chat = chats.render([asked(digests[0], "?"), answer_message("A.")])
    items = [[TokenRow("a", chat.ids_T, chat.mask_T, images=chat.images)]]
    feed = Feed(items, TrainingConfig(max_tokens_per_batch=2048), 0, vision=Vision(processor(family), store.path))
    empty, full = feed.collate([[]]), feed.collate([items])
    assert empty.keys() == full.keys() and len(empty["target_N"]) == 0
    model = copy.deepcopy(make_model(family, processor(family).tokenizer))
    fuse_loss(model, cross_entropy_loss(None))
    nothing, something = model(**empty, num_items_in_batch=torch.tensor(3))["loss"], model(**full)["loss"]
    assert nothing.item() == 0.0 and something.item() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_among_processes_every_batch_has_an_image(family: str, store: ImageStore, digests: list[str]) -> None:
    """One that did not use its tower would not take part in what the others wait for. Nothing of it is learned."""
    import torch

    from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss

    chats = renderer(family, store)
    rows = [chats.render([asked(*shown, "?"), answer_message("A.")]) for shown in ((), (digests[0],), (digests[1],))]
    items = [[TokenRow(str(n), row.ids_T, row.mask_T, images=row.images)] for n, row in enumerate(rows)]
    config, vision = TrainingConfig(), Vision(processor(family), store.path)
    alone, together = (Feed(items, config, 0, ranks=ranks, vision=vision) for ranks in (1, 2))
    text, accompanied = alone.collate(items[:1]), together.collate([items[:1]])
    assert "pixel_values" not in text and "pixel_values" in accompanied and len(accompanied["input_ids"]) == 2
    assert torch.equal(text["target_N"], accompanied["target_N"])
    # Rows with images need no company, and where there are none nobody uses the tower.
    assert len(together.collate([items[1:2]])["input_ids"]) == 1
    assert len(Feed(items[:1], config, 0, ranks=2, vision=vision).collate([items[:1]])["input_ids"]) == 1
    model = copy.deepcopy(make_model(family, processor(family).tokenizer))
    fuse_loss(model, cross_entropy_loss(None))
    losses = [model(**batch)["loss"].item() for batch in (text, accompanied)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_budgets_count_what_images_take(store: ImageStore, digests: list[str]) -> None:
    chats = renderer("idefics3", store)
    rows = [chats.render([asked(*shown, "?"), answer_message("A.")]) for shown in ((), (digests[0],), tuple(digests))]
    assert len(rows[0]) < len(rows[1]) < len(rows[2])
    items = [[TokenRow(str(n), row.ids_T, row.mask_T, images=row.images)] for n, row in enumerate(rows)]
    feed = Feed(items, TrainingConfig(), 0, vision=Vision(processor("idefics3"), store.path))
    assert feed.sizes == [len(row) for row in rows]


def test_a_gone_image_is_an_error_that_says_so(tmp_path: Path) -> None:
    kept = ImageStore(tmp_path / "images")
    digest = kept.add(picture(RED))
    chats = renderer("llava", kept)
    kept.path(digest).unlink()
    with pytest.raises(DataError, match="is missing"):
        renderer("llava", ImageStore(tmp_path / "images")).render([asked(digest, "?"), answer_message("A.")])
    assert chats.images is not None
