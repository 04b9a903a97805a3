"""Where a judge sees the images of a prompt, and by what its answers are known again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from easydistill.contracts.teacher import Completion, GenerationRequest
from easydistill.data.messages import Content, Message, with_images_placed
from easydistill.rewards import RewardContext, Rollout, judge

RED, BLUE = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def image(digest: str) -> dict[str, str]:
    return {"type": "image", "image": digest}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("words", "images", "wanted"),
    [
        ("no image", (), "no image"),
        ("<image> is a tag", (), "<image> is a tag"),
        ("a <image> b <image>", (RED, BLUE), [text("a "), image(RED), text(" b "), image(BLUE)]),
        ("<image><image>", (RED, RED), [image(RED), image(RED)]),
        ("one <image>", (RED, BLUE), [image(RED), image(BLUE), text("one <image>")]),
        ("none", (RED,), [image(RED), text("none")]),
    ],
)
def test_images_stand_where_their_tags_are(words: str, images: Sequence[str], wanted: Content) -> None:
    assert with_images_placed(words, images) == wanted


def test_images_can_stand_before_a_text_whatever_it_says() -> None:
    assert with_images_placed("<image>", (RED,), at_tags=False) == [image(RED), text("<image>")]


class Asked:
    """A judge that keeps what it is asked."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def identity(self) -> dict[str, Any]:
        return {"model": "judge"}

    def generate(
        self, requests: Sequence[GenerationRequest], done: Any, record: Callable[..., None], stop: Any
    ) -> None:
        for request in requests:
            if not done(request.key):
                self.requests.append(request)
                record([Completion(request.key, "<score>9</score>", finish_reason="stop")])

    def close(self) -> None:
        pass


def rollout(answer: str, *images: str) -> Rollout:
    parts: list[Any] = [*map(image, images), text("What is it?")]
    message: Message = {"role": "user", "content": parts if images else "What is it?"}
    return Rollout((message,), answer, (1,), (2,), True)


def asked(*rollouts: Rollout, how: dict[str, Any] | None = None) -> list[GenerationRequest]:
    teacher = Asked()
    reward = judge.make(judge.Config(), RewardContext(judge=teacher, judge_image=how or {}))
    assert reward(rollouts) == [1.0] * len(rollouts)
    return teacher.requests


def shown(request: GenerationRequest) -> list[str]:
    """What stands before the question's own words, and the kinds of its parts."""
    content = request.messages[-1]["content"]
    assert isinstance(content, list)
    return [part["type"] for part in content]


def test_a_judge_sees_the_images_in_the_conversation() -> None:
    plain, seen = asked(rollout("A cat."), rollout("A cat.", RED, BLUE))
    assert isinstance(plain.messages[-1]["content"], str)
    assert shown(seen) == ["text", "image", "image", "text"]
    content = seen.messages[-1]["content"]
    assert isinstance(content, list) and str(content[0]).endswith("user: '}")


def test_tags_that_the_policy_writes_are_no_places_of_images() -> None:
    (seen,) = asked(rollout("<image> A cat.", RED))
    assert shown(seen) == ["image", "text"]


def test_another_image_is_another_question() -> None:
    assert len(asked(rollout("A cat.", RED), rollout("A cat.", BLUE), rollout("A cat.", RED))) == 2
    small, large = (asked(rollout("A cat.", RED), how={"max_pixels": size})[0] for size in (100, 200))
    assert small.key != large.key
    assert asked(rollout("A cat."), how={"max_pixels": 100})[0].key == asked(rollout("A cat."))[0].key
