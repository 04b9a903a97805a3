"""Teachers on this machine that see: what is given to the model, and to vLLM's engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import END, make_model, make_processor, save_processor, store_of, vision_model

import easydistill
from easydistill.config.inference import TransformersInferenceConfig, VllmInferenceConfig
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.reading import read_samples
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import TeacherError
from easydistill.models.draws import SeededSampler
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.models.reference import sees_images
from easydistill.models.sampling import generate_batch
from easydistill.models.vllm import load_engine
from easydistill.teachers import plan_teacher
from easydistill.teachers.local import LocalChat, vision_of
from easydistill.teachers.pool.messages import TeacherSpec
from easydistill.teachers.transformers import TransformersTeacher
from easydistill.teachers.vllm import VllmTeacher


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return store_of(tmp_path_factory.mktemp("images"), [])[0]


@pytest.fixture(scope="module")
def digests(store: ImageStore) -> list[str]:
    """Red, green and blue; the last two of one size."""
    return [store.add(picture(RED, (40, 28))), store.add(picture(GREEN, (16, 16))), store.add(picture(BLUE, (16, 16)))]


def request(key: str, *images: str) -> GenerationRequest:
    content: Any = "What?"
    if images:
        content = [*({"type": "image", "image": one} for one in images), {"type": "text", "text": "What?"}]
    return GenerationRequest(key, ({"role": "user", "content": content},))


CONFIG = TransformersInferenceConfig(backend="transformers", max_new_tokens=8, temperature=0.0, dtype="float32")


def answers(teacher: Any, requests: Sequence[GenerationRequest]) -> dict[str, Outcome]:
    found: list[Outcome] = []
    teacher.generate(requests, lambda key: False, found.extend, StopSignal())
    return {outcome.key: outcome for outcome in found}


@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl"])
def test_answers_are_those_to_the_images(family: str, store: ImageStore, digests: list[str]) -> None:
    reference = str(vision_model(family))
    asked = {"green": digests[1:2], "blue": digests[2:], "none": [], "two": digests[:2]}
    requests = [request(key, *images) for key, images in asked.items()]
    found = answers(TransformersTeacher(reference, CONFIG, images=store), requests)
    texts = {key: outcome.text for key, outcome in found.items() if isinstance(outcome, Completion)}
    assert texts.keys() == asked.keys()
    assert texts["green"] != texts["blue"]
    vision = Vision(load_processor(reference), store.path)
    tokenizer = vision.processor.tokenizer
    for one in requests:
        images = asked[one.key]
        text = tokenizer.apply_chat_template(list(one.messages), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(vision.expand(text, images), add_special_tokens=False)["input_ids"]
        outcome = found[one.key]
        assert isinstance(outcome, Completion) and outcome.prompt_tokens == len(ids)
        ends = frozenset({tokenizer.convert_tokens_to_ids(END)})
        (own,) = generate_batch(
            load_model(reference, torch.float32),
            [ids],
            ends,
            8,
            SeededSampler([0], temperature=[0.0]),
            vision=vision if images else None,
            images=[images],
        )
        assert outcome.text == tokenizer.decode(own.ids)


def test_without_images_or_eyes_requests_with_some_are_refused(
    store: ImageStore, digests: list[str], tiny_model: Path
) -> None:
    for teacher in (
        TransformersTeacher(str(tiny_model), CONFIG, images=store),
        TransformersTeacher(str(vision_model("llava")), CONFIG),
    ):
        found = answers(teacher, [request("image", digests[0]), request("text")])
        assert isinstance(found["text"], Completion)
        assert isinstance(found["image"], Failure)


def test_a_row_that_fills_the_context_is_refused(store: ImageStore, digests: list[str]) -> None:
    """The positions stand in the text's part of the config."""
    reference = str(vision_model("llava"))
    long = GenerationRequest("long", ({"role": "user", "content": "a" * 600},))
    found = answers(TransformersTeacher(reference, CONFIG, images=store), [long, request("image", digests[0])])
    assert isinstance(found["long"], Failure) and found["long"].reason == "prompt_too_long"
    assert isinstance(found["image"], Completion)


def test_which_plans_see(tiny_model: Path, tmp_path: Path) -> None:
    seeing = str(vision_model("gemma3"))
    assert sees_images(seeing) and not sees_images(str(tiny_model)) and not sees_images("nowhere/nothing")
    for backend in ("transformers", "vllm"):
        config = {"transformers": TransformersInferenceConfig, "vllm": VllmInferenceConfig}[backend]
        assert plan_teacher(config(backend=backend), seeing).sees_images()
        assert not plan_teacher(config(backend=backend), str(tiny_model)).sees_images()
    # Servers are sent tokens.
    assert not plan_teacher(VllmInferenceConfig(backend="vllm", replicas=1), seeing).sees_images()
    # Without a processor nothing can be shown.
    make_model("llava", make_processor("llava").tokenizer).save_pretrained(tmp_path)
    assert not sees_images(str(tmp_path))


def test_workers_find_the_images(store: ImageStore, digests: list[str]) -> None:
    spec = TeacherSpec("transformers", str(vision_model("llava")), CONFIG, None, images=store.folder)
    found = answers(spec.make(), [request("green", digests[1]), request("blue", digests[2])])
    texts = [outcome.text for outcome in found.values() if isinstance(outcome, Completion)]
    assert len(set(texts)) == 2


def test_rows_with_images_are_labelled_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(picture(RED))
    (tmp_path / "green.png").write_bytes(picture(GREEN))
    rows = [
        {"id": colour, "instruction": "<image>\nWhich colour?", "images": [f"{colour}.png"]}
        for colour in ("red", "green")
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = {
        "job_type": "label",
        "output_dir": str(tmp_path / "run"),
        "models": {"teacher": str(vision_model("llava"))},
        "dataset": {
            "instruction_path": str(tmp_path / "rows.json"),
            "labeled_path": str(tmp_path / "out" / "labels.json"),
        },
        "inference": {"backend": "transformers", "max_new_tokens": 6, "temperature": 0},
    }
    assert easydistill.run(config).exit_code == 0
    labels = next((tmp_path / "run" / "stages").glob("*-label")) / "labeled.json"
    reader = ImageReader(ImageStore(tmp_path / "run" / "images"))
    samples, rejected = read_samples(labels, labelled=True, images=reader)
    assert not rejected and {sample.id for sample in samples} == {"red", "green"}
    assert len({str(sample.messages[-1]["content"]) for sample in samples}) == 2


# --- vLLM -----------------------------------------------------------------------------------------------------------


@dataclass
class Written:
    token_ids: list[int]
    finish_reason: str = "length"


@dataclass
class Output:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[Written]
    finished: bool = True


class Engine:
    """Takes requests as vLLM's engine does, and reads the images of a prompt as it is told."""

    def __init__(self, reads: dict[str, list[int]]) -> None:
        self.reads = reads
        self.given: dict[str, Any] = {}

    def add_request(self, key: str, prompt: dict[str, Any], params: Any) -> None:
        self.given[key] = prompt

    def step(self) -> list[Output]:
        given, self.open = self.given, {}
        return [
            Output(key, self.reads.get(key, one["prompt_token_ids"]), [Written([65])]) for key, one in given.items()
        ]


def engine_teacher(store: ImageStore, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> VllmTeacher:
    """A teacher whose engine is there already."""
    reference = str(vision_model("qwen2_5_vl"))
    config = VllmInferenceConfig(backend="vllm", max_new_tokens=4, temperature=0)
    teacher = VllmTeacher(reference, config, images=store)
    vision = vision_of(reference, store, config)
    assert vision is not None
    tokenizer = vision.processor.tokenizer
    ends = frozenset({tokenizer.eos_token_id})
    teacher._engine, teacher._context, teacher._ends, teacher._vision = engine, 512, ends, vision
    teacher._chat = LocalChat(tokenizer, ends, config, None, None, vision)
    monkeypatch.setattr(VllmTeacher, "_params", lambda self, request, room: self._never_written(request))
    return teacher


def test_vllm_is_given_one_placeholder_an_image(
    store: ImageStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine({})
    teacher = engine_teacher(store, engine, monkeypatch)
    vision = teacher._vision
    assert vision is not None
    both = request("two", *digests[:2])
    expanded = teacher._chat.prompt(both, None)
    assert isinstance(expanded, list)
    engine.reads["two"] = expanded
    found = answers(teacher, [both, request("text")])
    assert all(isinstance(outcome, Completion) for outcome in found.values())
    given = engine.given["two"]
    (mark,) = vision.processor.image_token_ids
    assert given["prompt_token_ids"].count(mark) == 2 and expanded.count(mark) == sum(
        map(vision.image_tokens, digests[:2])
    )
    assert given["multi_modal_uuids"] == {"image": digests[:2]}
    assert [image.getpixel((0, 0)) for image in given["multi_modal_data"]["image"]] == [RED, GREEN]
    assert set(engine.given["text"]) == {"prompt_token_ids"}
    assert teacher._never_written(both) == dict.fromkeys(vision.processor.reserved_ids, -100.0)
    assert teacher._never_written(request("text")) is None
    assert found["two"].prompt_tokens == len(expanded)  # type: ignore[union-attr]


def test_an_engine_that_reads_other_tokens_is_not_believed(
    store: ImageStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = engine_teacher(store, Engine({"image": [1, 2, 3]}), monkeypatch)
    with pytest.raises(TeacherError, match="otherwise than transformers: 3 tokens"):
        answers(teacher, [request("image", digests[0])])


def test_vllm_runs_transformers_classes_where_its_own_know_no_such_tower(tiny_model: Path) -> None:
    """As LLaVA with a DINOv2 tower."""
    asked: list[dict[str, Any]] = []

    def engine(**options: Any) -> str:
        asked.append(options)
        if "model_impl" not in options:
            raise NotImplementedError("Unsupported vision config")
        return "engine"

    assert load_engine(engine, str(vision_model("llava")), {"model": "m"}) == "engine"
    assert asked == [{"model": "m"}, {"model": "m", "model_impl": "transformers"}]
    with pytest.raises(NotImplementedError):
        load_engine(engine, str(tiny_model), {"model": "m"})


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("family", ["idefics3", "qwen2_5_vl"])
def test_vllm_answers_as_transformers_does(family: str, store: ImageStore, digests: list[str], tmp_path: Path) -> None:
    """vLLM's classes for vision models need torchvision."""
    pytest.importorskip("vllm")
    pytest.importorskip("torchvision")
    processor = make_processor(family)
    # Attention of vLLM on a CPU knows no narrower heads.
    wide = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    make_model(family, processor.tokenizer, **wide).save_pretrained(tmp_path)
    save_processor(family, processor, tmp_path)
    requests = [request("green", digests[1]), request("two", *digests[:2]), request("text")]
    own = answers(TransformersTeacher(str(tmp_path), CONFIG, images=store), requests)
    config = VllmInferenceConfig(backend="vllm", max_new_tokens=8, temperature=0, dtype="float32", max_model_len=512)
    teacher = VllmTeacher(str(tmp_path), config, images=store)
    found = answers(teacher, requests)
    teacher.close()
    for key, outcome in own.items():
        theirs = found[key]
        assert isinstance(outcome, Completion) and isinstance(theirs, Completion)
        assert (theirs.text, theirs.prompt_tokens) == (outcome.text, outcome.prompt_tokens)
