"""Images, sound and video of a row: where they stand, and which of them are read.

Images stand in parts of a message (OpenAI's `image_url`, Qwen-VL's `{"image": …}`, Anthropic's and Gemini's), or in a
column of the row: then parts without a source, or `<image>` in the text, say where; without any, they go before the
first text of the user, as TRL has it. Until `data/images` gives them digests, parts hold what the row holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from easydistill.data.messages import IMAGE_TAG, ImagePart, Message, Part, have_images, text_of
from easydistill.data.reading import keys
from easydistill.data.reading.values import as_list, is_given
from easydistill.data.row_files import MalformedRow

IMAGE_COUNT, IMAGE_PLACE = "image_count", "image_place"
"""Reasons for rejected rows: other images than places for them; an image where none can be shown."""
VIDEO, AUDIO, FILE = "video_not_supported", "audio_not_supported", "file_not_supported"
_HINTS = {
    VIDEO: "videos are not read: give some of its frames as images, remove the row, or describe in words what it shows",
    AUDIO: "sound is not read: give a transcript as text, or remove the row",
    FILE: "files are not read: give its text, or its pages as images",
}
_IMAGE_TYPES = ("image", "image_url", "input_image")
_VIDEO_TYPES = ("video", "video_url", "input_video")
_AUDIO_TYPES = ("audio", "audio_url", "input_audio")
_FILE_TYPES = ("file", "input_file", "document")
_TYPES = frozenset((*_IMAGE_TYPES, *_VIDEO_TYPES, *_AUDIO_TYPES, *_FILE_TYPES))
_HELD = frozenset((*_IMAGE_TYPES, *_VIDEO_TYPES, *_AUDIO_TYPES, "file"))
"""Keys of a part that hold a medium, whatever its type says."""
_SOURCES = ("image_url", "image", "input_image", "source", "url", "path", "data", "bytes", "base64")
_INLINE = ("inlineData", "inline_data")
_MEDIA_KEYS = frozenset(keys.MEDIA)
_NUMBERED = re.compile(r"(?:image|img|picture)_?\d+", re.IGNORECASE)
_OTHER_TAG = re.compile(r"<(video|audio)>")
_PLACE = None
"""What stands in a part for an image of the row's column."""


# --- parts ------------------------------------------------------------------------------------------------------


def is_media(part: Any) -> bool:
    """Whether a part of a message is something else than text, a call or a thought."""
    if not isinstance(part, dict):
        return False
    if part.get("type") in _TYPES or any(is_given(part.get(name)) for name in _INLINE):
        return True
    return not _HELD.isdisjoint(part) and any(is_given(part.get(name)) for name in _HELD)


def media_part(part: dict[str, Any], where: str) -> ImagePart:
    """The image of a part.

    Raises:
        MalformedRow: it is a video, sound or a file.
    """
    inline = next((part[name] for name in _INLINE if is_given(part.get(name))), None)
    if isinstance(inline, dict):
        mime = str(inline.get("mimeType") or inline.get("mime_type") or "")
        if not mime.startswith("image/"):
            raise of_mime(inline, where)
        return _image({"bytes": inline.get("data")})
    kind = str(part.get("type") or "")
    for reason, types in ((VIDEO, _VIDEO_TYPES), (AUDIO, _AUDIO_TYPES), (FILE, _FILE_TYPES)):
        if kind in types or (kind not in _IMAGE_TYPES and any(is_given(part.get(name)) for name in types)):
            raise MalformedRow(f"{where} holds a part of type {kind or types[0]!r}; {_HINTS[reason]}", reason)
    return _image(next((part[name] for name in _SOURCES if is_given(part.get(name))), _PLACE))


def of_mime(file: Any, where: str) -> MalformedRow:
    """The refusal of a part that holds a file of some kind."""
    found = file if isinstance(file, dict) else {}
    mime = str(found.get("mimeType") or found.get("mime_type") or "")
    reason = {"video": VIDEO, "audio": AUDIO}.get(mime.partition("/")[0], FILE)
    return MalformedRow(f"{where} holds a file ({mime or 'of no known type'}); {_HINTS[reason]}", reason)


def _image(source: Any) -> ImagePart:
    return {"type": "image", "image": source}


def refused_place(where: str) -> MalformedRow:
    """The refusal of an image that no chat template and no server shows there."""
    return MalformedRow(
        f"{where} holds an image, and images are shown in the user's messages alone: move it there, or remove the row",
        IMAGE_PLACE,
    )


# --- columns ----------------------------------------------------------------------------------------------------


def place_images(row: dict[str, Any], messages: list[Message]) -> set[str]:
    """Put the images of the row's column where they belong in its chat; returns the column that they are from.

    Args:
        messages: the chat; messages with images are replaced.

    Raises:
        MalformedRow: there are more or fewer images than places, or a video or sound.
    """
    if _MEDIA_KEYS.isdisjoint(row) and not have_images(messages):
        _refuse_numbered(row)
        return set()
    _refuse_columns(row)
    column = next((name for name in keys.IMAGES if is_given(row.get(name))), None)
    places = list(_places(messages))
    if column is None:
        if any(part["image"] is _PLACE for part in places):
            raise _count("a part of a message stands for an image, and the row has no column `images`")
        if places:
            _refuse_tags(messages, "beside parts with images")
        elif any(row.get(name) is not None for name in keys.IMAGES) and _tags(messages):
            raise _count(f"its text has {IMAGE_TAG}, and its column of images is empty")
        return set()
    sources = _listed(row[column])
    if any(not is_given(source) for source in sources):
        raise _count(f"an image of `{column}` is empty")
    if places:
        _fill(places, sources, column, messages)
    elif tags := _tags(messages):
        if tags != len(sources):
            raise _count(f"`{column}` has {_images(len(sources))}, and its text has {IMAGE_TAG} {_times(tags)}")
        _at_tags(messages, iter(sources))
    else:
        _before_text(messages, sources)
    return {column}


def _refuse_columns(row: dict[str, Any]) -> None:
    for names, reason in ((keys.VIDEOS, VIDEO), (keys.AUDIOS, AUDIO)):
        name = next((name for name in names if is_given(row.get(name))), None)
        if name is not None:
            raise MalformedRow(
                f"the row has `{name}`; {_HINTS[reason]}, or the column if the text does without it", reason
            )


def _refuse_numbered(row: dict[str, Any]) -> None:
    """Refuse a row whose images are in columns of their own: nothing says where they belong."""
    for name, value in row.items():
        if type(value) is dict and is_given(value.get("bytes")) and _NUMBERED.fullmatch(str(name)):
            raise _count(
                f"`{name}` is an image in a column of its own: put the images of a row into one list, `images`"
            )


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip()[:1] != "[":
        return [value]
    found = None if isinstance(value, dict | bytes) else as_list(value)
    return [value] if found is None else found


def _places(messages: list[Message]) -> Iterator[ImagePart]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (part for part in message["content"] if part["type"] == "image")


def _fill(places: list[ImagePart], sources: list[Any], column: str, messages: list[Message]) -> None:
    """Give the parts that stand for images those of the column."""
    _refuse_tags(messages, "beside parts for images")
    if [part["image"] for part in places] == sources:
        return
    if len(places) != len(sources) or any(part["image"] is not _PLACE for part in places):
        raise _count(f"`{column}` has {_images(len(sources))}, and its messages have {_images(len(places))}")
    for part, source in zip(places, sources, strict=True):
        part["image"] = source


def _tags(messages: list[Message]) -> int:
    """How often the text has a tag.

    Raises:
        MalformedRow: one is where no image can be shown.
    """
    count = 0
    for message in messages:
        found = text_of(message).count(IMAGE_TAG)
        if found and message["role"] != "user":
            raise MalformedRow(
                f"the {message['role']} message of a row with images has {IMAGE_TAG}, and images are shown in the "
                "user's messages alone: remove it from the text, or remove the row",
                IMAGE_PLACE,
            )
        count += found
    return count


def _refuse_tags(messages: list[Message], beside: str) -> None:
    if tags := _tags(messages):
        raise _count(f"its text has {IMAGE_TAG} {_times(tags)} {beside}, so that it is not clear which stands where")


def refuse_tags_of_answers(messages: list[Message], answers: list[Message]) -> None:
    """Refuse answers that have tags, to a prompt with images."""
    if have_images(messages):
        _tags(answers)


def _at_tags(messages: list[Message], sources: Iterator[Any]) -> None:
    for at, message in enumerate(messages):
        text = text_of(message)
        if IMAGE_TAG in text:
            parts: list[Part] = []
            first, *others = text.split(IMAGE_TAG)
            pieces = [first, *(_after_tag(piece) for piece in others)]
            if not pieces[-1]:
                # A tag at the end of a text is a line of its own, as one at its beginning.
                pieces[-2] = pieces[-2].removesuffix("\n")
            for number, piece in enumerate(pieces):
                if number:
                    parts.append(_image(next(sources)))
                if piece:
                    parts.append({"type": "text", "text": piece})
            messages[at] = {**message, "content": parts}


def _after_tag(piece: str) -> str:
    """The text behind a tag: LLaVA's convention is a line of its own for the tag."""
    return piece.removeprefix("\n")


def _before_text(messages: list[Message], sources: list[Any]) -> None:
    at = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if at is None:
        raise _count("the row has images, and no message of the user to show them in")
    text = text_of(messages[at])
    texts: list[Part] = [{"type": "text", "text": text}] if text else []
    messages[at] = {**messages[at], "content": [*map(_image, sources), *texts]}


def _count(problem: str) -> MalformedRow:
    return MalformedRow(problem, IMAGE_COUNT)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
