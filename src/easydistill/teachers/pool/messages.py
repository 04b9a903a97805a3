"""What the run's process and its workers tell each other."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from easydistill.config.inference import AnyLocalOptions
from easydistill.contracts.teacher import Failure, GenerationRequest, Outcome, Teacher
from easydistill.errors import EasyDistillError

STOP = "stop"
"""To a worker: free the model and end."""
Engine = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher on one machine, as a worker makes it."""

    engine: Engine
    model: str
    """Its reference."""
    inference: AnyLocalOptions
    template: str | None
    """The file for a teacher without a template of its own."""
    date: datetime.datetime | None = None
    """What the template's clock shows."""
    deterministic: bool = False
    images: Path | None = None
    """The folder of the run's images."""

    def make(self) -> Teacher:
        """The teacher; its weights are not loaded yet."""
        from easydistill.data.images import ImageStore

        images = ImageStore(self.images)
        if self.engine == "vllm":
            from easydistill.teachers.vllm import VllmTeacher

            return VllmTeacher(self.model, self.inference, self.template, self.date, images)
        from easydistill.teachers.transformers import TransformersTeacher

        return TransformersTeacher(self.model, self.inference, self.template, date=self.date, images=images)


@dataclass(frozen=True)
class Divide:
    """To a worker: say in which batches these requests are answered."""

    number: int
    requests: tuple[GenerationRequest, ...]


@dataclass(frozen=True)
class Ask:
    """To a worker: answer these requests, which go together."""

    number: int
    requests: tuple[GenerationRequest, ...]


@dataclass(frozen=True)
class Ready:
    """From a worker: the model is loaded."""


@dataclass(frozen=True)
class Divided:
    """From a worker: the keys of each batch of a `Divide`, and the requests that do not fit the model."""

    number: int
    batches: list[list[str]]
    failures: list[Failure]


@dataclass(frozen=True)
class Answered:
    """From a worker: the outcomes of an `Ask`."""

    number: int
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Failed:
    """From a worker: an error that no other worker would be spared."""

    error: EasyDistillError


@dataclass(frozen=True)
class Gone:
    """Of a worker: it has ended, or is about to."""

    how: str
    """What became of it, for `worker 1 …`."""
    said: str = ""
    """The end of what it has printed, or its traceback."""
    raised: bool = False
    """Whether an exception ended it, not a kill or a crash."""
