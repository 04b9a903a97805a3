"""Images in a rendered chat: the template's mark for each becomes the tokens that the model reads of it.

A template writes one mark for every image, whatever its size. How many tokens stand there in the end depends on the
image and the model, which an `Expander` knows. Each piece of a text, between the ends of what is learned, is expanded
by itself, before anything is tokenised: so a prompt and an answer apart give the tokens of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from easydistill.data.chat.templates import Span
from easydistill.data.messages import Chat, Message, full_text, have_images, images_of, is_learned
from easydistill.data.tokens import TokenIds
from easydistill.errors import DataError

TRUNCATED, RESERVED, NOT_SHOWN, NOT_SUPPORTED = (
    "image_truncated",
    "image_placeholder",
    "image_not_shown",
    "image_not_supported",
)
"""Reasons for which rows are rejected: an image is beyond the longest length; a text holds what stands for an image;
the template does not show every image once; nobody would look at the image."""


class Marks(Protocol):
    """What stands for images in a model's texts."""

    @property
    def mark(self) -> str:
        """What the model's template writes for one image."""

    @property
    def reserved(self) -> Collection[str]:
        """Texts that only images may bring: the mark, and what it becomes."""

    @property
    def image_token_ids(self) -> Collection[int]:
        """The tokens in whose places the model reads images."""


class Expander(Protocol):
    """What a model reads of images, as text."""

    @property
    def processor(self) -> Marks:
        """What stands for an image."""

    def expand(self, text: str, digests: Sequence[str]) -> str:
        """A text in which each mark is what the model reads of its image, given the images' digests in order."""


class ImageRefused(DataError):
    """Why a chat cannot be rendered because of its images.

    Attributes:
        reason: under which the row is rejected.
    """

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


def check_images(expander: Expander | None, chat: Chat, single_turn: bool) -> None:
    """Check that a model can be shown the images of a chat, if it has some.

    Raises:
        ImageRefused: it cannot, or a text of the chat would be taken for one.
    """
    shown = have_images(chat.messages)
    if expander is None:
        if shown:
            problem = (
                "the chat has images, and this model is given text alone: it would not see them\n"
                "    → take a vision-language model, label such rows by an API in the job `label`, or remove them"
            )
            raise ImageRefused(NOT_SUPPORTED, problem)
        return
    if shown and single_turn:
        problem = "an EasyDistill 1 template shows no images\n    → set dataset.template to another one"
        raise ImageRefused(NOT_SHOWN, problem)
    if shown and any(is_learned(message) and images_of(message) for message in chat.messages):
        problem = "an answer has an image, which no model writes\n    → give the message `weight: 0`, or remove the row"
        raise ImageRefused(NOT_SUPPORTED, problem)
    for message in chat.messages:
        _refuse_marks(expander, full_text(message) if not images_of(message) else _texts(message))
    for tool in chat.tools:
        _refuse_marks(expander, str(tool))


def _texts(message: Message) -> str:
    """Everything that a message with images says, without their tags."""
    content = message["content"]
    assert not isinstance(content, str)
    texts = [part["text"] for part in content if part["type"] == "text"]
    return "\n".join([*texts, message.get("reasoning_content", "")])


def _refuse_marks(expander: Expander, text: str) -> None:
    for reserved in expander.processor.reserved:
        if reserved in text:
            problem = (
                f"a text of the chat holds {reserved!r}, which stands for an image in this model\n"
                "    → take it out of the text"
            )
            raise ImageRefused(RESERVED, problem)


def expanded(
    expander: Expander | None, images: Sequence[str], text: str, spans: Sequence[Span] = ()
) -> tuple[str, list[Span]]:
    """A rendered chat with what the model reads in the place of its images' marks, and the spans in that text.

    Args:
        images: the digests of the chat's images, in order.
        spans: pieces of the text, in order; each is expanded by itself.

    Raises:
        ImageRefused: the template does not show each image once.
    """
    if expander is None or not images:
        return text, list(spans)
    mark = expander.processor.mark
    count = text.count(mark)
    if count != len(images):
        problem = (
            f"the chat has {len(images)} image{'s' if len(images) > 1 else ''}, and the chat template writes "
            f"{mark!r} {count} time{'' if count == 1 else 's'}\n"
            "    → set dataset.template to a template of the family that shows images"
        )
        raise ImageRefused(NOT_SHOWN, problem)
    pieces: list[str] = []
    found: list[Span] = []
    at = length = used = 0
    for start, end in (*sorted(spans), (len(text), len(text))):
        for piece, learned in ((text[at:start], False), (text[start:end], True)):
            marks = piece.count(mark)
            if marks:
                piece = expander.expand(piece, images[used : used + marks])
                used += marks
            if learned and piece:
                found.append((length, length + len(piece)))
            pieces.append(piece)
            length += len(piece)
        at = end
    assert used == len(images), "a mark lies across the end of a span"
    return "".join(pieces), found


def image_beyond(expander: Expander | None, ids: TokenIds, length: int) -> int | None:
    """Where the last image of a chat ends, in tokens, if that is beyond its first `length`; else None."""
    if expander is None or len(ids) <= length:
        return None
    places = np.flatnonzero(np.isin(np.asarray(ids), list(expander.processor.image_token_ids)))
    return int(places[-1]) + 1 if len(places) and int(places[-1]) >= length else None


def refuse_cut(expander: Expander | None, ids: TokenIds, length: int) -> None:
    """Check that no image is cut off where only a chat's first `length` tokens are read.

    Raises:
        ImageRefused: one is.
    """
    if (end := image_beyond(expander, ids, length)) is not None:
        problem = (
            f"an image ends at token {end}, and only {length} are read\n"
            "    → raise training.max_length, or use smaller images"
        )
        raise ImageRefused(TRUNCATED, problem)
