"""The chats of a teacher on this machine: requests → prompt tokens, and the tokens it wrote → answers."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from easydistill.config.inference import LocalInferenceConfig
from easydistill.contracts.teacher import (
    MALFORMED_CALL,
    TEMPLATE_REFUSED,
    Completion,
    Failure,
    GenerationRequest,
    prompt_or_failure,
)
from easydistill.data.chat import ChatRenderer
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import ModelError
from easydistill.models.reference import sees_images
from easydistill.teachers.parsing import AnswerReader

if TYPE_CHECKING:
    from easydistill.data.images import ImageStore
    from easydistill.models.multimodal import Vision

WRITTEN = "written"
"""Key of `Completion.extra` with everything that the model wrote, where the answer's parts leave out some of it."""


class LocalChat:
    """Renders requests and reads answers.

    Args:
        ends: tokens that end an answer.
        template: a file, for a teacher without a template of its own; `inference.template` replaces any.
        date: what the template's clock shows; by default the present.
        vision: what the teacher sees of images; without it, requests with some are refused.

    Raises:
        DataError: there is no template, or it cannot be read.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: frozenset[int],
        inference: LocalInferenceConfig,
        template: str | None,
        date: datetime.date | None = None,
        vision: Vision | None = None,
    ) -> None:
        own = getattr(tokenizer, "chat_template", None)
        path = inference.template or (None if own else template)
        self._renderer = ChatRenderer.from_file(
            tokenizer, ends, path, inference.chat_template_kwargs, date, images=vision
        )
        self._reader = AnswerReader(self._renderer)

    def prompt(self, request: GenerationRequest, context: int | None) -> list[int] | Failure:
        """A request's prompt tokens, or why there is none: the template refuses it, or it fills the model's context.

        Raises:
            TeacherError: the request brings tools, and calls in the answer could not be read.
        """
        if request.tools and self._refuses_tools is not None:
            return Failure(request.key, TEMPLATE_REFUSED, self._refuses_tools, 0, passing=False)
        return prompt_or_failure(self._renderer, request, context)

    def marked(self, request: GenerationRequest) -> list[int]:
        """A prompt's tokens with one placeholder for each image, which an engine expands itself."""
        text = self._renderer.text(request, add_generation_prompt=True)
        ids: list[int] = self._renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _refuses_tools(self) -> str | None:
        return self._reader.check_tools()

    def completion(
        self, request: GenerationRequest, prompt: Sequence[int], ids: Sequence[int], **values: Any
    ) -> Completion:
        """The answer in the tokens `ids`, the end token left out or not.

        Args:
            values: the other fields of `Completion`.
        """
        written = self._reader.read(ids, prompt, request.tools)
        extra: dict[str, Any] = {}
        if written.whole is not None and written.whole != written.text:
            extra[WRITTEN] = written.whole
        if written.problem is not None:
            extra[MALFORMED_CALL] = written.problem
        return Completion(
            key=request.key,
            text=written.text,
            reasoning=written.reasoning,
            tool_calls=written.openai_calls,
            extra=extra,
            **values,
        )


def vision_of(reference: str, images: ImageStore | None, inference: LocalInferenceConfig) -> Vision | None:
    """What a teacher sees of a run's images; None for a model of text.

    Args:
        images: of the run; without them, nothing is seen.
    """
    if images is None or not sees_images(reference):
        return None
    from easydistill.models.multimodal import Vision, load_processor

    try:
        processor = load_processor(reference, trust_remote_code=inference.trust_remote_code)
        return Vision(processor, images.path, None if inference.image is None else inference.image.max_pixels)
    except ModelError as error:
        LOGGER.warning("rows with images are refused: %s", error)
        return None
