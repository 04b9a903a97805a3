"""Prompts with images for trainings on a student's own answers: rows with none, one and two images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from easydistill.config.models import ModelsConfig
from easydistill.data.chat import ChatRenderer
from easydistill.data.images import ImageStore
from easydistill.data.messages import Message
from easydistill.models.multimodal import Vision
from easydistill.models.student import Student, build_student
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import store_of, vision_model

SIZES = ((40, 28), (16, 16), (20, 50))


@cache
def _built(family: str, seed: int) -> Student:
    return build_student(ModelsConfig(student=str(vision_model(family, seed))), torch.float32)


@dataclass
class Scene:
    """A student that sees, some pictures, and the prompts about them."""

    student: Student
    store: ImageStore
    digests: list[str]
    vision: Vision = field(init=False)

    def __post_init__(self) -> None:
        assert self.student.processor is not None
        self.vision = Vision(self.student.processor, self.store.path)

    def messages(self, *images: int, text: str = "What?") -> tuple[Message, ...]:
        """A question about pictures, given by number."""
        parts: list[Any] = [{"type": "image", "image": self.digests[at]} for at in images]
        return ({"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text},)

    def images(self, *images: int) -> tuple[str, ...]:
        return tuple(self.digests[at] for at in images)

    def prompt(self, *images: int, text: str = "What?") -> list[int]:
        """The tokens of such a question."""
        renderer = ChatRenderer(self.student.tokenizer, self.student.eos_ids, images=self.vision)
        return renderer.prompt_ids(self.messages(*images, text=text))


def scene(family: str, folder: Path, seed: int = 0, pictures: Sequence[bytes] | None = None) -> Scene:
    """A new copy of a family's tiny student, with a red, a green and a blue picture of different sizes."""
    given = pictures or [picture(colour, size) for colour, size in zip((RED, GREEN, BLUE), SIZES, strict=True)]
    store, digests = store_of(folder / "images", given)
    return Scene(copy.deepcopy(_built(family, seed)), store, digests)
