"""A worker's own side: it makes the teacher, and answers what it is told to.

A teacher that answers in batches is given one batch at a time; one that keeps an engine full gets requests as they
come.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome, RecordOutcomes
from easydistill.engine.determinism import deterministic
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import EasyDistillError
from easydistill.launch.messages import sendable
from easydistill.teachers.pool.messages import STOP, Answered, Ask, Divide, Divided, Failed, Gone, Ready, TeacherSpec

Inbox = SimpleQueue[Any]
Tell = Callable[[Any], None]


class Batching(Protocol):
    """A teacher that answers requests in batches, which depend on all of them."""

    def load(self) -> None: ...

    def batches(self, requests: Sequence[GenerationRequest]) -> tuple[list[list[str]], list[Failure]]: ...

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None: ...


class Streaming(Protocol):
    """A teacher that answers requests side by side, each by itself."""

    @property
    def in_flight(self) -> int: ...

    def submit(self, request: GenerationRequest) -> Failure | None: ...

    def step(self) -> list[Completion]: ...


def serve(spec: TeacherSpec, inbox: Inbox, tell: Tell) -> None:
    """Answer what is in the inbox, until it holds `STOP`. How it ends otherwise is told as `Failed` or `Gone`."""
    try:
        with deterministic(spec.deterministic):
            teacher: Any = spec.make()
            try:
                (_stream if spec.engine == "vllm" else _by_batch)(teacher, inbox, tell)
            finally:
                teacher.close()
    except EasyDistillError as error:
        sent = sendable(error)
        assert isinstance(sent, EasyDistillError)
        tell(Failed(sent))
    except Exception as error:
        tell(Gone(f"met {type(error).__name__}: {error}", traceback.format_exc(), raised=True))


def _by_batch(teacher: Batching, inbox: Inbox, tell: Tell) -> None:
    teacher.load()
    tell(Ready())
    while (message := inbox.get()) != STOP:
        if isinstance(message, Divide):
            tell(Divided(message.number, *teacher.batches(message.requests)))
            continue
        assert isinstance(message, Ask)
        outcomes: list[Outcome] = []
        teacher.generate(message.requests, lambda key: False, outcomes.extend, StopSignal())
        tell(Answered(message.number, outcomes))


def _stream(teacher: Streaming, inbox: Inbox, tell: Tell) -> None:
    numbers: dict[str, int] = {}
    is_ready = False
    while True:
        for message in _arrived(inbox, wait=not teacher.in_flight):
            if message == STOP:
                return
            for request in message.requests:
                numbers[request.key] = message.number
                failure = teacher.submit(request)
                if not is_ready:
                    # The model is loaded for the first request.
                    is_ready = True
                    tell(Ready())
                if failure is not None:
                    tell(Answered(numbers.pop(request.key), [failure]))
        if teacher.in_flight:
            for completion in teacher.step():
                tell(Answered(numbers.pop(completion.key), [completion]))


def _arrived(inbox: Inbox, *, wait: bool) -> list[Any]:
    """All messages that are there; with `wait` at least one."""
    found = [inbox.get()] if wait else []
    while True:
        try:
            found.append(inbox.get_nowait())
        except Empty:
            return found
