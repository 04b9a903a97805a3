"""Images in synthesis: questions that show those of rows, and new rows that carry them.

A prompt shows an image where its text has `<image>`. Models are asked to write `[image]` for it: the tag itself is a
token of some models, which no message may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from easydistill.contracts.operator import Ask, Tools
from easydistill.data.messages import IMAGE_TAG, Message, Part, images_of, text_of
from easydistill.data.records import Sample
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.similarity import Near, Novelty
from easydistill.synthesis.text import prompt_text

WRITTEN_TAG = "[image]"
"""How an image is spelt in text that a model reads or writes, where the image itself is not shown there."""
PLACES_LOST = "image_places"
"""Reason of the rejection of a text from which it is not clear where a row's images belong."""


_FEW = 16
"""Texts about the same images that are few."""


def with_images(ask: Ask, images: Sequence[str]) -> Ask:
    """The question with a row's images, by digest: where its text has their tags, or else before the text, in order.

    Without images it stays as it is.
    """
    if not images:
        return ask
    *before, last = ask.messages
    pieces = text_of(last).split(IMAGE_TAG)
    if len(pieces) != len(images) + 1:
        # A prompt of the user's own that shows the row otherwise, or text of a model that has a tag.
        pieces = [""] * len(images) + [WRITTEN_TAG.join(pieces)]
    message: Message = {**last, "content": list(_parts(pieces, images))}
    return replace(ask, messages=(*before, message))


def ask_about(tools: Tools, name: str, row: Sample, wants: Any = (), **values: Any) -> Ask:
    """A question about a row that shows the images of its prompt. As `Tools.ask`, which is told the words of the row.

    A prompt's text has the images' places if it has that of the row (`prompt_text`); its variable `images` is their
    number.
    """
    shown = images_of(*row.prompt)
    return with_images(tools.ask(name, words_of(row), wants, images=len(shown), **values), shown)


def words_of(row: Sample) -> str:
    """The text of a row's prompt, as `prompt_text`, without tags of its images."""
    text = prompt_text(row)
    return without_tags(text) if row.images else text


def without_tags(text: str) -> str:
    """A text of a row with images, without their tags."""
    for tag in (IMAGE_TAG, WRITTEN_TAG):
        text = text.replace(f"{tag}\n", "").replace(tag, "")
    return text.strip()


def about(images: Sequence[str], text: str) -> Message:
    """A user's message: images, and a text about them."""
    if not images:
        return {"role": "user", "content": text}
    return {"role": "user", "content": list(_parts([""] * len(images) + [text], images))}


def reworded(message: Message, text: str) -> Message:
    """A message of the user with another text, and with its images: where the text has their tags; or before it, where
    they were before the old one.

    Raises:
        Unusable: the images were within the old text, and the new one has other places for them.
    """
    shown = images_of(message)
    if not shown:
        return {"role": "user", "content": text}
    pieces = text.replace(WRITTEN_TAG, IMAGE_TAG).split(IMAGE_TAG)
    if len(pieces) == len(shown) + 1:
        return {"role": "user", "content": list(_parts(pieces, shown))}
    content = message["content"]
    if any(part["type"] == "image" for part in content[len(shown) :] if not isinstance(part, str)):
        detail = f"its text stands around {len(shown)} images, and the new one has {len(pieces) - 1} places for them"
        raise Unusable(PLACES_LOST, detail)
    return about(shown, " ".join(piece.strip() for piece in pieces if piece.strip()))


def _parts(pieces: Sequence[str], images: Sequence[str]) -> Iterator[Part]:
    """Pieces of text with an image between each two."""
    for number, piece in enumerate(pieces):
        if number:
            yield {"type": "image", "image": images[number - 1]}
        if piece:
            yield {"type": "text", "text": piece}


class ImageNovelty:
    """Whether instructions are new with respect to those about the same images: the same question about another image
    is another one. Those about no image are compared with each other.

    Args:
        near_duplicate, too_similar: as of `Novelty`.
    """

    def __init__(self, near_duplicate: float, too_similar: float) -> None:
        self._limits = near_duplicate, too_similar
        self._pools: dict[tuple[str, ...], Novelty] = {(): Novelty(*self._limits)}
        self._few: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        """The texts about images with few of them: a pool each would take 30 kB."""

    def add(self, row: Sample) -> None:
        """Add a row's prompt."""
        key, text = _key(row.images), words_of(row)
        if key in self._pools:
            self._pools[key].add(row.id, text)
        else:
            self._keep(key, row.id, text)

    def offer(self, identity: str, images: Sequence[str], text: str) -> Near | None:
        """Add an instruction, unless it is near another one, which is returned."""
        key = _key(images)
        if key in self._pools:
            return self._pools[key].offer(identity, text)
        if not self._few.get(key):
            self._keep(key, identity, text)
            return None
        near = self._pool_of(self._few[key]).check(text)
        if near is None:
            self._keep(key, identity, text)
        return near

    def _keep(self, key: tuple[str, ...], identity: str, text: str) -> None:
        texts = self._few.setdefault(key, [])
        texts.append((identity, text))
        if len(texts) > _FEW:
            self._pools[key] = self._pool_of(self._few.pop(key))

    def _pool_of(self, texts: Sequence[tuple[str, str]]) -> Novelty:
        pool = Novelty(*self._limits)
        for identity, text in texts:
            pool.add(identity, text)
        return pool


def _key(images: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(images)))
