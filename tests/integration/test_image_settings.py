"""`inference.image`: how models on this machine are shown images, as servers are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.pictures import encoded, looking, opened, sent_images
from tests.support.vision_models import vision_model

import easydistill
from easydistill import api
from easydistill.config.inference import TransformersInferenceConfig
from easydistill.contracts.operator import Ask
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome, TeacherPlan
from easydistill.data.images import ImageStore
from easydistill.data.images.store import scaled_size
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigError
from easydistill.jobs import stages_of
from easydistill.models.multimodal import Vision, load_processor
from easydistill.models.vllm import engine_prompt
from easydistill.teachers import plan_teacher
from easydistill.teachers.local import vision_of
from easydistill.teachers.transformers import TransformersTeacher

FAMILY = "qwen2_5_vl"
MOST = 150


def gradient() -> Image.Image:
    """An image of which every scaled copy differs."""
    return Image.linear_gradient("L").resize((40, 28)).convert("RGB")


def config(**image: Any) -> TransformersInferenceConfig:
    own = {"image": image} if image else {}
    return TransformersInferenceConfig(
        backend="transformers", max_new_tokens=8, temperature=0.0, dtype="float32", **own
    )


def asked(store: ImageStore, inference: TransformersInferenceConfig, *digests: str) -> list[Completion]:
    teacher = TransformersTeacher(str(vision_model(FAMILY)), inference, images=store)
    requests = [
        GenerationRequest(
            digest, ({"role": "user", "content": [{"type": "image", "image": digest}, {"type": "text", "text": "?"}]},)
        )
        for digest in digests
    ]
    found: list[Outcome] = []
    teacher.generate(requests, lambda key: False, found.extend, StopSignal())
    by_key = {outcome.key: outcome for outcome in found if isinstance(outcome, Completion)}
    return [by_key[digest] for digest in digests]


def test_a_local_teacher_sees_what_a_server_would_be_sent(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    whole = store.add(encoded(gradient()))
    with looking() as server:
        (tmp_path / "image.png").write_bytes(encoded(gradient()))
        (tmp_path / "in.json").write_text(json.dumps([{"instruction": "?", "images": ["image.png"]}]))
        job = {
            "job_type": "label",
            "output_dir": str(tmp_path / "run"),
            "dataset": {"instruction_path": str(tmp_path / "in.json")},
            "inference": {"base_url": server.url, "model": "m", "image": {"max_pixels": MOST}},
        }
        assert easydistill.run(job, quiet=True).exit_code == 0
        (sent,) = sent_images(server.bodies[0])
    assert opened(sent).size == scaled_size((40, 28), MOST) and opened(sent).size[0] < 40
    (scaled, given), (large,) = (
        asked(store, config(max_pixels=MOST), whole) + asked(store, config(), store.add(sent)),
        asked(store, config(), whole),
    )
    assert (scaled.text, scaled.prompt_tokens) == (given.text, given.prompt_tokens)
    assert large.prompt_tokens > scaled.prompt_tokens
    vision = vision_of(str(vision_model(FAMILY)), store, config(max_pixels=MOST))
    assert vision is not None and vision.image(whole).tobytes() == opened(sent).convert("RGB").tobytes()


def test_a_small_image_is_left_as_it_is(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    digest = store.add(encoded(gradient()))
    (same,), (plain,) = asked(store, config(max_pixels=40 * 28), digest), asked(store, config(), digest)
    assert (same.text, same.prompt_tokens) == (plain.text, plain.prompt_tokens)


def test_an_engine_is_given_the_same_and_tells_them_apart(tmp_path: Path) -> None:
    store, processor = ImageStore(tmp_path / "images"), load_processor(str(vision_model(FAMILY)))
    digest = store.add(encoded(gradient()))
    prompts = [engine_prompt(Vision(processor, store.path, most), [1], [digest]) for most in (None, MOST, 9)]
    sizes = [prompt["multi_modal_data"]["image"][0].size for prompt in prompts]
    assert sizes == [(40, 28), scaled_size((40, 28), MOST), scaled_size((40, 28), 9)]
    names = [prompt["multi_modal_uuids"]["image"][0] for prompt in prompts]
    assert names[0] == digest and len(set(names)) == 3


def test_keys_of_text_stay_and_those_of_images_change() -> None:
    from easydistill.asking.model import AskedModel

    plan = TeacherPlan(lambda context: None, dict, list)  # type: ignore[arg-type, return-value]
    text = Ask(({"role": "user", "content": "What?"},))
    image = Ask(({"role": "user", "content": [{"type": "image", "image": "sha256:1"}]},))
    plain, small, smaller = (AskedModel(plan, config(**own)) for own in ({}, {"max_pixels": 9}, {"max_pixels": 8}))
    keys = [[model.request(ask, {}).key for model in (plain, small, smaller)] for ask in (text, image)]
    assert len(set(keys[0])) == 1 and len(set(keys[1])) == 3
    assert plain.identity() == AskedModel(plan, config()).identity()
    assert plain.identity()["inference"] == small.identity()["inference"]
    # `"image": {}` says nothing.
    empty = TransformersInferenceConfig(**(config().model_dump() | {"image": {}}))
    assert AskedModel(plan, empty).request(image, {}).key == keys[1][0]
    assert AskedModel(plan, empty).identity() == plain.identity()


def label_job(folder: Path, inference: dict[str, Any], **values: Any) -> dict[str, Any]:
    (folder / "in.json").write_text(json.dumps([{"instruction": "What?"}]))
    return {
        "job_type": "label",
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "in.json")},
        "inference": inference,
        "models": {"teacher": "teacher"},
        **values,
    }


@pytest.mark.parametrize(
    ("inference", "words"),
    [
        ({"backend": "transformers", "image": {"detail": "low"}}, "`detail` is a word for servers"),
        ({"backend": "vllm", "replicas": 1, "image": {"max_pixels": 9}}, "sent no images"),
        ({"backend": "ray", "image": {"max_pixels": 9}}, "actors of Ray are given no images"),
        ({"backend": "transformers", "image": {"max_pixels": 0}}, "max_pixels"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(inference: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        easydistill.validate(label_job(tmp_path, inference))


@pytest.mark.parametrize("kind", ["white_box_kd_local", "on_policy_kd"])
def test_teachers_that_score_see_whole_images(kind: str, tmp_path: Path) -> None:
    job = label_job(tmp_path, {"backend": "transformers", "image": {"max_pixels": 9}})
    job |= {"job_type": kind, "models": {"teacher": "teacher", "student": "student"}}
    with pytest.raises(ConfigError, match="images as they are"):
        easydistill.validate(job)


def test_a_teacher_of_text_is_not_told_how_it_sees(tiny_model: Path, tmp_path: Path) -> None:
    job = label_job(tmp_path, {"backend": "transformers", "image": {"max_pixels": 9}})
    for model, expected in ((tiny_model, 1), (vision_model("llava"), 0)):
        job["models"] = {"teacher": str(model)}
        (stage,) = stages_of(api.load(job).job)
        found = [issue for issue in stage.preflight() if issue.path == "inference.image"]
        assert len(found) == expected


def test_an_image_for_no_plan_is_no_issue() -> None:
    """A model that is not on this machine yet may see."""
    plan = plan_teacher(config(max_pixels=9), "owner/a-model-that-is-elsewhere", None)
    assert not [issue for issue in plan.preflight() if issue.path == "inference.image"]
