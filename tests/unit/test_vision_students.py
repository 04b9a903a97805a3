"""Students that see: loss and gradients, what is trained of them, how they write, how they are saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import FAMILIES, make_model, store_of, vision_model

from easydistill.config.models import ModelsConfig
from easydistill.config.training import LoraConfig, TrainerConfig
from easydistill.data.chat import ChatRenderer
from easydistill.data.images import ImageStore
from easydistill.errors import ConfigError
from easydistill.methods.sft.batching import learned
from easydistill.methods.shared import compat
from easydistill.methods.shared.adapters import adapters, with_adapters
from easydistill.methods.shared.compat import check_head, cross_entropy_loss, fuse_loss, unfuse_loss
from easydistill.methods.shared.student import save_student
from easydistill.models.draws import SeededSampler
from easydistill.models.head import body_of, decoder_of, image_inputs
from easydistill.models.limits import Limits
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.models.multimodal.parts import Parts
from easydistill.models.sampling import generate_batch
from easydistill.models.size import model_parameters, student_shape
from easydistill.models.student import Student, build_student, prune_layers
from easydistill.report.snippet import snippet

TYPED = {"qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return store_of(tmp_path_factory.mktemp("images"), [])[0]


@pytest.fixture(scope="module")
def digests(store: ImageStore) -> list[str]:
    """Red, green and blue; the last two of one size."""
    return [store.add(picture(RED, (40, 28))), store.add(picture(GREEN, (16, 16))), store.add(picture(BLUE, (16, 16)))]


@pytest.fixture(params=FAMILIES)
def student(request: pytest.FixtureRequest) -> Student:
    return student_of(request.param)


def student_of(family: str) -> Student:
    return copy.deepcopy(built(family))


@cache
def built(family: str) -> Student:
    return build_student(ModelsConfig(student=str(vision_model(family))), torch.float32)


def family_of(student: Student) -> str:
    return str(student.model.config.model_type)


Rows = Sequence[tuple[list[int], Sequence[str]]]


def prompt(vision: Vision, images: Sequence[str], answer: str | None = None) -> list[int]:
    tokenizer = vision.processor.tokenizer
    content: Any = "What?"
    if images:
        content = [*({"type": "image", "image": one} for one in images), {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    ids: list[int] = tokenizer(vision.expand(text, images), add_special_tokens=False)["input_ids"]
    return ids


def batch_of(vision: Vision, rows: Rows) -> dict[str, torch.Tensor]:
    """Padded on the right without a mask, as rows are trained on; the last five tokens of each are learned."""
    width = max(len(ids) for ids, _ in rows)
    pad = vision.processor.tokenizer.pad_token_id
    ids_BT = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids, _ in rows])
    labels_BT = torch.full_like(ids_BT, -100)
    for row, (ids, _) in enumerate(rows):
        labels_BT[row, len(ids) - 5 : len(ids)] = ids_BT[row, len(ids) - 5 : len(ids)]
    return {"input_ids": ids_BT, "labels": labels_BT, **vision.batch(rows), **vision.type_ids(ids_BT)}


def seeing(student: Student, store: ImageStore) -> Vision:
    assert student.processor is not None
    return Vision(student.processor, store.path)


def fused(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    fuse_loss(model, cross_entropy_loss(None))
    try:
        loss: torch.Tensor = model(**batch, **learned(batch["labels"]))["loss"]
    finally:
        unfuse_loss(model)
    return loss


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def test_fused_loss_and_gradients_are_the_models_own(student: Student, store: ImageStore, digests: list[str]) -> None:
    vision = seeing(student, store)
    images = ((digests[0],), (), (digests[1], digests[0]))
    batch = batch_of(vision, [(prompt(vision, own, "Yes."), own) for own in images])
    check_head(student.model)
    ours = fused(student.model, batch)
    own = student.model(**batch, use_cache=False).loss
    torch.testing.assert_close(ours, own)
    mine, theirs = gradients(student.model, ours), gradients(student.model, own)
    assert mine.keys() == theirs.keys()
    assert any(Parts(student.model).of(name) == "vision" and bool(value.any()) for name, value in mine.items())
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(family: str, store: ImageStore, digests: list[str]) -> None:
    found = []
    for recomputed in (False, True):
        for lora in (None, LoraConfig(r=2)):
            student = student_of(family)
            vision = seeing(student, store)
            batch = batch_of(vision, [(prompt(vision, digests[:1], "Yes."), digests[:1])])
            fuse_loss(student.model, cross_entropy_loss(None))
            model = with_adapters(student.model, TrainerConfig(lora=lora, gradient_checkpointing=recomputed)).train()
            if recomputed:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            found.append(gradients(model, model(**batch, **learned(batch["labels"]))["loss"]))
    for plain, other in ((found[0], found[2]), (found[1], found[3])):
        assert plain and plain.keys() == other.keys()
        for name, value in plain.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_rows_together_lose_what_each_loses_alone(student: Student, store: ImageStore, digests: list[str]) -> None:
    vision = seeing(student, store)
    rows = [(prompt(vision, own, "Yes."), own) for own in ((digests[0],), (), (digests[1], digests[0]))]
    with torch.no_grad():
        together = fused(student.model, batch_of(vision, rows))
        alone = [fused(student.model, batch_of(vision, [row])) for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_other_images_are_another_loss(
    student: Student, store: ImageStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the language model alone as the body, nothing would be seen, and nothing would be said of it."""
    vision = seeing(student, store)
    ids = prompt(vision, digests[1:2], "Yes.")
    green, blue = (batch_of(vision, [(ids, (one,))]) for one in digests[1:])
    with torch.no_grad():
        assert abs(fused(student.model, green) - fused(student.model, blue)) > 1e-3
        monkeypatch.setattr(compat, "body_of", decoder_of)
        monkeypatch.setattr(compat, "image_inputs", lambda model: frozenset())
        assert fused(student.model, green) == fused(student.model, blue)


@pytest.mark.parametrize("family", sorted(TYPED))
def test_types_of_tokens_are_not_forgotten(family: str, store: ImageStore, digests: list[str]) -> None:
    student = student_of(family)
    vision = seeing(student, store)
    batch = batch_of(vision, [(prompt(vision, digests[:1], "Yes."), digests[:1])])
    types = batch.pop(TYPED[family])
    assert set(types.unique().tolist()) == {0, 1}
    with pytest.raises(AssertionError, match=TYPED[family]), torch.no_grad():
        fused(student.model, batch)


def test_what_a_body_takes(student: Student) -> None:
    names = image_inputs(student.model)
    assert "pixel_values" in names
    assert not names & {"input_ids", "attention_mask", "position_ids", "labels"}
    assert (TYPED.get(family_of(student)) in names) == (family_of(student) in TYPED)
    assert body_of(student.model) is student.model.base_model
    assert decoder_of(student.model) is student.model.get_decoder()


def test_models_of_text_have_no_images(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), torch.float32)
    assert image_inputs(model) == frozenset()
    assert body_of(model) is decoder_of(model) is model.model
    assert build_student(ModelsConfig(student=str(tiny_model)), torch.float32).processor is None


# --- parts ----------------------------------------------------------------------------------------------------------


def trained(model: Any) -> set[str]:
    parts = Parts(model)
    return {parts.of(name) for name, value in model.named_parameters() if value.requires_grad}


def test_the_tower_stays_as_it_is(student: Student) -> None:
    model = student.model
    assert trained(model) == {"language", "connector", "vision"}
    for wanted, found in (
        (None, {"language", "connector"}),
        (["connector"], {"connector"}),
        (["vision", "language"], {"language", "vision"}),
    ):
        config = TrainerConfig(train_parts=wanted)  # type: ignore[arg-type]
        assert with_adapters(model, config) is model
        assert trained(model) == found
    assert sum(value.numel() for value in model.get_output_embeddings().parameters()) > 0
    assert all(Parts(model).of(name) == "language" for name, _ in model.named_parameters() if "lm_head" in name)


@pytest.mark.parametrize(
    "wanted, found",
    [(None, {"language"}), (["language", "connector"], {"language", "connector"}), (["vision"], {"vision"})],
)
def test_adapters_are_in_the_trained_parts_alone(student: Student, wanted: Any, found: set[str]) -> None:
    if family_of(student) == "gemma3":
        # Its connector is a bare matrix.
        found = found - {"connector"}
    parts = Parts(student.model)
    original = {name for name, _ in student.model.named_modules()}
    adapted = with_adapters(student.model, TrainerConfig(lora=LoraConfig(r=2), train_parts=wanted))
    names = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert names and all("lora" in name for name in names)
    bases = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names}
    assert bases <= original
    assert {parts.of(base) for base in bases} == found


def test_parts_without_linear_layers_get_no_adapters() -> None:
    config = TrainerConfig(lora=LoraConfig(), train_parts=["connector"])
    with pytest.raises(ConfigError, match="no linear layer"):
        adapters(student_of("gemma3").model, config)
    assert adapters(student_of("llava").model, config) is not None


def test_named_targets_are_not_looked_for_in_the_tower(student: Student) -> None:
    targets = ["q_proj", "qkv"]
    if family_of(student).startswith("qwen"):
        assert any(name.endswith("qkv") for name, _ in student.model.named_modules())
    adapted = with_adapters(student.model, TrainerConfig(lora=LoraConfig(r=2, target_modules=targets)))
    names = [name for name, value in adapted.named_parameters() if value.requires_grad]
    assert names and not any("vis" in name for name in names)


@pytest.mark.parametrize("wanted", [["vision"], ["language", "connector"]])
def test_models_of_text_have_no_other_parts(wanted: Any, tiny_model: Path) -> None:
    model = load_model(str(tiny_model), torch.float32)
    for lora in (None, LoraConfig()):
        with pytest.raises(ConfigError, match="is a model of text"):
            adapters(model, TrainerConfig(train_parts=wanted, lora=lora))
    adapters(model, TrainerConfig(train_parts=["language"]))
    assert all(value.requires_grad for value in model.parameters())


def test_the_default_leaves_no_trace() -> None:
    assert "train_parts" not in TrainerConfig().identity()
    both = [TrainerConfig(train_parts=parts).identity() for parts in (["vision", "language"], ["language", "vision"])]
    assert both[0] == both[1] != TrainerConfig().identity()


def test_merged_adapters_leave_the_tower_alone(
    student: Student, store: ImageStore, digests: list[str], tmp_path: Path
) -> None:
    """Acceptance: the trained and saved student is read again, and sees the same."""
    vision = seeing(student, store)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    parts = Parts(student.model)
    batch = batch_of(vision, [(prompt(vision, digests[:1], "Yes."), digests[:1])])
    model = with_adapters(student.model, TrainerConfig(lora=LoraConfig(r=2)))
    optimiser = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    for _ in range(2):
        model(**batch).loss.backward()
        optimiser.step()
    student.model = model.merge_and_unload().eval()
    changed = {name for name, value in student.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and {parts.of(name) for name in changed} == {"language"}

    chats = Chats()
    renderer = ChatRenderer(student.tokenizer, student.eos_ids)
    student.save_dtype = "float32"
    with torch.no_grad():
        wanted = student.model(**batch).loss
    files = save_student(student, renderer, chats, tmp_path / "model")
    assert {"model/processor_config.json", "model/chat_template.jinja", "model/tokenizer.json"} <= set(files)
    again = build_student(ModelsConfig(student=str(tmp_path / "model")), torch.float32)
    assert again.processor is not None and again.processor.identity() == vision.processor.identity()
    assert again.tokenizer.chat_template == student.tokenizer.chat_template
    ids = prompt(seeing(again, store), digests[:1], "Yes.")
    with torch.no_grad():
        loss = again.model(**batch_of(seeing(again, store), [(ids, digests[:1])])).loss
    torch.testing.assert_close(loss, wanted)


def test_the_report_shows_how_it_is_loaded(tmp_path: Path) -> None:
    """The code runs as it stands."""
    (tmp_path / "picture.png").write_bytes(picture(RED, (16, 16)))
    code = snippet(str(vision_model("gemma3")), sees=True).replace("max_new_tokens=128", "max_new_tokens=2")
    code = code.replace("picture.png", str(tmp_path / "picture.png"))
    exec(compile(code, "snippet", "exec"), {})


class Chats:
    """The settings of a `dataset` section that are saved with a student."""

    template = None
    template_kwargs = None
    thoughts = None


# --- size -----------------------------------------------------------------------------------------------------------


def test_layers_are_those_of_the_language_model(student: Student, store: ImageStore, digests: list[str]) -> None:
    family = family_of(student)
    whole = vision_model(family, layers=4)
    model = load_model(str(whole), torch.float32)
    counted = {keep: model_parameters(str(whole), keep) for keep in (None, 2)}
    assert counted[None] == sum(value.numel() for value in model.parameters())
    assert prune_layers(model, 2, "it") == 4
    assert counted[2] == sum(value.numel() for value in model.parameters())
    assert model.config.get_text_config().num_hidden_layers == 2
    shape = student_shape(ModelsConfig(student=str(whole)))
    assert shape is not None and shape.layers == 4 and shape.hidden == 32
    vision = seeing(student, store)
    batch = batch_of(vision, [(prompt(vision, digests[:1], "Yes."), digests[:1])])
    assert torch.isfinite(fused(model, batch))


def test_limits_are_those_of_the_text(student: Student) -> None:
    assert student.limits == Limits(512, len(student.tokenizer))
    assert Limits.of_reference(str(vision_model(family_of(student)))) == student.limits


def test_without_a_processor_it_is_a_student_of_text(tmp_path: Path) -> None:
    processor = load_processor(str(vision_model("llava")))
    make_model("llava", processor.tokenizer).save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    student = build_student(ModelsConfig(student=str(tmp_path)), torch.float32)
    assert student.processor is None
    assert any("images cannot be shown" in note for note in student.notes)


# --- writing --------------------------------------------------------------------------------------------------------


def answers(student: Student, vision: Vision, rows: Rows, temperature: float = 0.0) -> list[list[int]]:
    sampler = SeededSampler(list(range(len(rows))), temperature=[temperature] * len(rows))
    made = generate_batch(
        student.model,
        [ids for ids, _ in rows],
        frozenset(),
        8,
        sampler,
        vision=vision,
        images=[images for _, images in rows],
    )
    return [answer.ids for answer in made]


def test_answers_are_those_to_the_rows_own_images(student: Student, store: ImageStore, digests: list[str]) -> None:
    """Greedy decoding step by step without a cache, one row at a time, is the reference."""
    vision = seeing(student, store)
    images = ((digests[1],), (), (digests[2], digests[0]), (digests[2],))
    rows = [(prompt(vision, own), own) for own in images]
    found = answers(student, vision, rows)
    for (ids, own), answer in zip(rows, found, strict=True):
        written: list[int] = []
        with torch.no_grad():
            for _ in range(8):
                batch = batch_of(vision, [([*ids, *written], own)])
                batch.pop("labels")
                logits_V = student.model(**batch, use_cache=False).logits[0, -1]
                logits_V[list(vision.processor.reserved_ids)] = -torch.inf
                written.append(int(logits_V.argmax()))
        assert answer == written
    assert found[0] != found[3], "green and blue are told apart"


def test_no_placeholder_is_ever_written(student: Student, store: ImageStore, digests: list[str]) -> None:
    vision = seeing(student, store)
    reserved = set(vision.processor.reserved_ids)
    layer = student.model.get_output_embeddings()
    with torch.no_grad():
        # Every token is a placeholder, or has half the chance.
        others = [token for token in range(layer.weight.shape[0]) if token not in reserved]
        bias_V = torch.zeros(layer.weight.shape[0])
        bias_V[others] = -20.0
        layer.bias = torch.nn.Parameter(bias_V)
    for images in ((digests[0],), ()):
        rows = [(prompt(vision, images), images)]
        for temperature in (0.0, 1.0):
            (answer,) = answers(student, vision, rows, temperature)
            assert len(answer) == 8 and not reserved & set(answer)
