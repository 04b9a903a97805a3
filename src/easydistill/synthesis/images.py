"""Questions that show the images of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from easydistill.contracts.operator import Ask
from easydistill.data.messages import IMAGE_TAG, Message, Part, text_of


def with_images(ask: Ask, images: Sequence[str]) -> Ask:
    """The question with a row's images, by digest: where its text has their tags, or else before the text, in order.

    Without images it stays as it is.
    """
    if not images:
        return ask
    *before, last = ask.messages
    text = text_of(last)
    pieces = text.split(IMAGE_TAG)
    if len(pieces) != len(images) + 1:
        # A prompt of the user's own that shows the row otherwise.
        pieces = [""] * len(images) + [text]
    message: Message = {**last, "content": list(_parts(pieces, images))}
    return replace(ask, messages=(*before, message))


def _parts(pieces: Sequence[str], images: Sequence[str]) -> Iterator[Part]:
    """Pieces of text with an image between each two."""
    for number, piece in enumerate(pieces):
        if number:
            yield {"type": "image", "image": images[number - 1]}
        if piece:
            yield {"type": "text", "text": piece}
