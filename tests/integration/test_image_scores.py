"""Log-probabilities of tokens with images from a server that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.generating_server import GeneratingServer, generating
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import FAMILIES, vision_model

from easydistill.config.inference import ApiInferenceConfig
from easydistill.data.images import ImageStore
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.teachers.openai.image_scores import address_of
from easydistill.teachers.openai.scores import ServerScores

FAMILY = "qwen2_5_vl"
Sequences = list[tuple[list[int], int]]


class Rows:
    """Rows of a family, as its student reads them: two that differ in their image alone, one with two, one of text."""

    def __init__(self, reference: str, folder: Path) -> None:
        self.reference = reference
        self.store = ImageStore(folder)
        pictures = picture(RED, (40, 28)), picture(GREEN, (16, 16)), picture(BLUE, (16, 16))
        digests = [self.store.add(data) for data in pictures]
        self.vision = Vision(load_processor(reference), self.store.path)
        self.images = [(digests[1],), (digests[2],), (digests[0], digests[2]), ()]
        self.sequences: Sequences = [self._row(own) for own in self.images]

    def _row(self, images: tuple[str, ...]) -> tuple[list[int], int]:
        tokenizer = self.vision.processor.tokenizer
        content: list[Any] = [*({"type": "image"} for _ in images), {"type": "text", "text": "What?"}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(self.vision.expand(text, images), add_special_tokens=False)["input_ids"]
        return prompt + tokenizer("It is so.", add_special_tokens=False)["input_ids"], len(prompt)

    def own(self) -> list[list[float]]:
        """What transformers says of each row alone."""
        model, found = load_model(self.reference, torch.float32).eval(), []
        for (ids, start), images in zip(self.sequences, self.images, strict=True):
            ids_BT = torch.tensor([ids])
            with torch.inference_mode():
                logits = model(input_ids=ids_BT, **self.vision.inputs(ids_BT, [(ids, images)])).logits[0]
            logprobs = logits.log_softmax(-1)[:-1].gather(-1, ids_BT[0, 1:, None])[:, 0]
            found.append(logprobs[start - 1 :].tolist())
        return found

    def scorer(self, url: str, **values: Any) -> ServerScores:
        settings = {"timeout": 20, "max_retry_wait": 0.02, "max_concurrency": 2, **values}
        decode = self.vision.processor.tokenizer.decode
        inference = ApiInferenceConfig(base_url=url, api_key="k", **settings)
        return ServerScores(inference, Redactor(), lambda token: decode([token]), self.vision, self.store)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(str(vision_model(FAMILY)), tmp_path / "images")


@pytest.fixture
def server(rows: Rows, tmp_path: Path) -> Iterator[GeneratingServer]:
    with generating(rows.reference, tmp_path / "server") as made:
        yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_images(family: str, tmp_path: Path) -> None:
    """Every image arrives, once for each placeholder; a row of text goes to the other endpoint."""
    rows = Rows(str(vision_model(family)), tmp_path / "images")
    with generating(rows.reference, tmp_path / "server") as server:
        found = rows.scorer(server.url).score(rows.sequences, StopSignal(), rows.images)
    for mine, theirs in zip(found, rows.own(), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-4)
    paths = {path: [body for at, body in server.asked if at == path] for path, _ in server.asked}
    assert {path: len(bodies) for path, bodies in paths.items()} == {"/inference/v1/generate": 3, "/v1/completions": 1}
    (text,) = paths["/v1/completions"]
    assert text["prompt"] == rows.sequences[3][0]
    processor = rows.vision.processor
    (mark,) = processor.tokenizer(processor.mark, add_special_tokens=False)["input_ids"]
    for body in paths["/inference/v1/generate"]:
        assert body["token_ids"].count(mark) == len(body["content_parts"])
        assert body["sampling_params"] == {"max_tokens": 1, "prompt_logprobs": 0}
    names = [tuple(part["uuid"] for part in body["content_parts"]) for body in paths["/inference/v1/generate"]]
    assert len(set(names)) == 3 and len({name for row in names for name in row}) == 3


def test_rows_of_text_are_asked_as_before(rows: Rows, server: GeneratingServer) -> None:
    ids, start = rows.sequences[3]
    rows.scorer(server.url).score([(ids, start)], StopSignal())
    assert server.asked == [
        ("/v1/completions", {"model": "tiny", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0})
    ]


def test_a_server_without_the_endpoint_is_told_how_to_be_started(rows: Rows, server: GeneratingServer) -> None:
    server.statuses = [(404, {"detail": "Not Found"})] * 9
    with pytest.raises(TeacherError, match=r"no_image_endpoint(.|\n)*--enable-scale-out"):
        rows.scorer(server.url).score(rows.sequences[:1], StopSignal(), rows.images[:1])
    assert len(server.asked) == 1


def test_a_server_that_does_not_look_is_refused(rows: Rows, server: GeneratingServer) -> None:
    server.looks = False
    with pytest.raises(TeacherError, match=r"images_not_seen(.|\n)*tells of no image"):
        rows.scorer(server.url).score(rows.sequences[:1], StopSignal(), rows.images[:1])
    server.looks, server.wrong = True, lambda answer: {**answer, "mm_placeholders": {"image": [{"offset": 1}]}}
    with pytest.raises(TeacherError, match="1 of 2 images"):
        rows.scorer(server.url).score(rows.sequences[2:3], StopSignal(), rows.images[2:3])
    server.statuses = [(400, {"error": {"message": "At most 0 image(s) may be provided in one prompt."}})]
    with pytest.raises(TeacherError, match=r"images_not_seen: .*At most 0 image(.|\n)*whose model sees images"):
        rows.scorer(server.url).score(rows.sequences[:1], StopSignal(), rows.images[:1])


def test_a_server_that_reads_other_image_tokens_is_refused(rows: Rows, server: GeneratingServer) -> None:
    """A smaller image is fewer tokens here: the scores would be those of other tokens."""
    with pytest.raises(TeacherError, match=r"other_image_tokens(.|\n)*max_pixels"):
        rows.scorer(server.url, image={"max_pixels": 100}).score(rows.sequences[2:3], StopSignal(), rows.images[2:3])


def test_a_wrong_number_of_scores_is_refused(rows: Rows, server: GeneratingServer) -> None:
    server.wrong = lambda answer: {**answer, "prompt_logprobs": answer["prompt_logprobs"][:-1]}
    with pytest.raises(TeacherError, match="no_prompt_logprobs"):
        rows.scorer(server.url).score(rows.sequences[:1], StopSignal(), rows.images[:1])
    server.wrong = lambda answer: {**answer, "prompt_logprobs": None}
    with pytest.raises(TeacherError, match="no_prompt_logprobs"):
        rows.scorer(server.url).score(rows.sequences[:1], StopSignal(), rows.images[:1])


def test_passing_faults_are_tried_again(rows: Rows, server: GeneratingServer) -> None:
    server.statuses = [(429, {"error": {"message": "slow"}}), (500, {"error": {"message": "oh"}}), (200, [])]
    found = rows.scorer(server.url).score(rows.sequences[:1], StopSignal(), rows.images[:1])
    assert len(found[0]) == 9 and len(server.asked) == 4


def test_the_endpoint_is_not_below_v1() -> None:
    wanted = "http://host:1/inference/v1/generate"
    assert address_of("http://host:1/v1/") == address_of("http://host:1/v1") == address_of("http://host:1") == wanted
    assert address_of("http://host:1/models/a/v1") == "http://host:1/models/a/inference/v1/generate"
