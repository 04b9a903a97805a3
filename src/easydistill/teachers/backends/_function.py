"""A teacher that is a plain function of a chat:

    def answer(messages): return "…"

`messages` are dicts of `role` and `content`. It returns the answer as a text, or None if there is none; it is called
from one thread, a question after the other. Every answer is journalled before the next question, and asked once. If it
has a parameter `sampling`, it is given the section's `max_new_tokens` and so on as a dict, with the question's
`temperature` and the number of its `sample`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar

from easydistill.config.inference import InferenceConfig
from easydistill.config.plain_functions import PlainFunction
from easydistill.contracts.teacher import Completion, GenerationRequest, RecordOutcomes, TeacherPlan
from easydistill.data.messages import have_images
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import ConfigIssue
from easydistill.plain_files import PlainFile, PlainFileError, Reference

EXAMPLE = "def {name}(messages): return 'You said: ' + messages[-1]['content']"


class FunctionTeacherConfig(InferenceConfig):
    """A teacher that is a function of a file of the user's."""

    needs_model: ClassVar[bool] = False


def module_of(call: Callable[..., Any], file: PlainFile, reference: Reference) -> ModuleType:
    """The teacher that a function is.

    Raises:
        PlainFileError: it cannot be called as a teacher.
    """
    function = PlainFunction(call, file, reference)
    function.check_named(("messages", "sampling"))
    if "messages" not in function.given:
        raise PlainFileError("a teacher has a parameter `messages`, and this function has none")

    def plan(config: InferenceConfig, model: str | None, template: str | None) -> TeacherPlan:
        teacher = FunctionTeacher(function, config)
        return TeacherPlan(
            make=lambda context: teacher, identity=teacher.identity, preflight=lambda: _unused(function, config)
        )

    config = function.config(FunctionTeacherConfig, backend=(str, ...))
    return function.module(Config=config, plan=plan)


def _unused(function: PlainFunction, config: InferenceConfig) -> list[ConfigIssue]:
    """Settings of sampling that the function would not see."""
    if "sampling" in function.given:
        return []
    problem = f"{function.reference.short} is not given it"
    hint = "give the function a parameter `sampling`, or remove the key"
    names = sorted(config.model_fields_set & {"max_new_tokens", "top_p"})
    return [ConfigIssue("config", f"inference.{name}", problem, hint) for name in names]


class FunctionTeacher:
    """The function, with its settings, as a `Teacher`."""

    def __init__(self, function: PlainFunction, config: InferenceConfig) -> None:
        self._function, self._settings = function, function.chosen(config)
        self._sampling = {"max_new_tokens": config.max_new_tokens, "top_p": config.top_p}

    def identity(self) -> dict[str, Any]:
        """The function, as it stands in its file, and its settings."""
        return {
            "backend": self._function.reference.short,
            "file": self._function.file.digest,
            "settings": self._settings,
        }

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        """
        Raises:
            FunctionFailed: the function has, or it returned something else than a text or None.
        """
        for request in requests:
            if stop.requested:
                return
            if not done(request.key):
                record([self._completion(request)])

    def _completion(self, request: GenerationRequest) -> Completion:
        assert not have_images(request.messages), "rows with images are refused"
        started = time.monotonic()
        messages = [dict(message) for message in request.messages]
        with self._function.running():
            text = self._function.call(messages=messages, **self._more(request), **self._settings)
        if text is not None and not isinstance(text, str):
            raise self._function.wrong(f"returned a {type(text).__name__}, and an answer is a text")
        seconds = round(time.monotonic() - started, 4)
        return Completion(request.key, text, finish_reason="stop", seconds=seconds)

    def _more(self, request: GenerationRequest) -> dict[str, Any]:
        if "sampling" not in self._function.given:
            return {}
        own = {"temperature": request.temperature, "sample": request.index}
        return {"sampling": {**self._sampling, **own}}

    def close(self) -> None:
        """Nothing to release."""
