"""What a row holds of an image → its digest: a path, a data URL, bytes, the base 64 of such, or an address.

A path is relative to the folder of the row's file, or to `dataset.image_folder`, and must not lead out of it, also
not through a link. The files of an image store (the folder `images` of a run, the one beside a published file) may be
named from anywhere. Addresses are fetched only where the config asks for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from easydistill.data.files import OF_STORAGE
from easydistill.data.images.normalise import MOST_BYTES, TOO_LARGE, UNREADABLE, ImageProblem
from easydistill.data.images.sources import SourceRecord
from easydistill.data.images.store import PREFIX, ImageStore, digest_of
from easydistill.data.messages import Message
from easydistill.data.plain import without_base64
from easydistill.data.row_files.broken import MalformedRow

NOT_SEEN = "image_not_supported"
"""Reason for which rows with images are rejected where nobody would look at them."""
MISSING, OUTSIDE, REMOTE = "image_missing", "image_outside", "image_remote"
"""Reasons: there is no such file; it is outside of the folder that rows may name; it is an address that is not
fetched."""
_DATA_URL = re.compile(r"data:([\w.+/-]*)((?:;[\w.+=-]+)*?)(;base64)?,", re.IGNORECASE)
_ADDRESS = re.compile(r"(\w[\w+.-]*)://", re.ASCII)
_SHORTEST = 44
"""Characters of base 64 that could be an image; what is shorter is a path."""
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""Of PNG, JPEG, GIF and WebP in base 64."""


class RowImages(Protocol):
    """Gives the images of rows their digests."""

    def digest(self, source: Any, folder: Path | None) -> str:
        """The digest of what a row holds of an image.

        Args:
            folder: of the row's file; None for a hub's data set.

        Raises:
            MalformedRow: it cannot be used.
        """


class ImageSettings(Protocol):
    """The `dataset` section, as far as it decides which images are read."""

    @property
    def image_folder(self) -> str | None: ...

    @property
    def fetch_images(self) -> bool: ...


class NoImages:
    """Refuses rows with images.

    Args:
        why: what a user is told: who would not see them, and what to do.
    """

    def __init__(self, why: str = "") -> None:
        self._why = why or "images are not read here: remove the row, or describe in words what its image shows"

    def digest(self, source: Any, folder: Path | None) -> str:
        """
        Raises:
            MalformedRow: always.
        """
        raise MalformedRow(f"the row has an image; {self._why}", NOT_SEEN)


class ImageReader:
    """Reads the images of rows into a store.

    Args:
        image_folder: that paths are relative to; by default the folder of the row's file.
        fetch: gives the digest of the image at an address; without it, addresses are refused.
        record: the files that are read are noted there, and those that should have been.
    """

    def __init__(
        self,
        store: ImageStore,
        image_folder: Path | None = None,
        fetch: Callable[[str], str] | None = None,
        record: SourceRecord | None = None,
    ) -> None:
        self._store = store
        self._image_folder = image_folder
        self._fetch = fetch
        self._record = record
        self._known: dict[tuple[str, str], str] = {}

    @classmethod
    def of(cls, dataset: ImageSettings, store: ImageStore, record: SourceRecord | None = None) -> ImageReader:
        """The reader that a `dataset` section describes."""
        folder = None if dataset.image_folder is None else Path(dataset.image_folder)
        fetch = _fetching(store) if dataset.fetch_images else None
        return cls(store, folder, fetch, record)

    def digest(self, source: Any, folder: Path | None) -> str:
        try:
            return self._digest(source, folder)
        except ImageProblem as problem:
            raise MalformedRow(f"{shown(source)}{problem}", problem.reason) from None

    def _digest(self, source: Any, folder: Path | None) -> str:
        data = embedded(source)
        if data is not None:
            return self._store.add(data)
        name = name_of(source)
        if name is None:
            raise ImageProblem(UNREADABLE, "what stands for the image is neither a path, nor a data URL, nor bytes")
        if (address := _ADDRESS.match(name)) is not None and address[1].lower() != "file":
            return self._fetched(name)
        return self._from_file(urllib.parse.unquote(name[7:]) if address is not None else name, folder)

    def _fetched(self, address: str) -> str:
        if self._fetch is None or not address.lower().startswith(("http://", "https://")):
            raise ImageProblem(
                REMOTE, "images are not fetched from the network: save it beside the rows, or set dataset.fetch_images"
            )
        return self._fetch(address)

    def _from_file(self, name: str, folder: Path | None) -> str:
        root = self._image_folder or folder
        if root is None:
            raise ImageProblem(MISSING, "a path in a hub's data set names no file here: set dataset.image_folder")
        key = (name, str(root))
        if key not in self._known:
            self._known[key] = self._read(name, root)
        return self._known[key]

    def _read(self, name: str, root: Path) -> str:
        try:
            path = (root / name).resolve()
            if (digest := self._store.take(path)) is not None:
                return digest
            if not path.is_relative_to(root.resolve()):
                raise ImageProblem(
                    OUTSIDE,
                    f"the path leads out of {root.name or root}/, the folder that images are read from: set "
                    "dataset.image_folder to the folder that holds them",
                )
            if not path.is_file():
                where = "dataset.image_folder" if self._image_folder else "the folder of the row's file"
                self._note(path)
                raise ImageProblem(MISSING, f"there is no such file; paths are relative to {where}")
            if path.stat().st_size > MOST_BYTES:
                self._note(path)
                raise ImageProblem(TOO_LARGE, f"the file has more than {MOST_BYTES:,} bytes")
            data = path.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            # A disk that is full, or that fails, is no fault of the row's.
            if isinstance(error, ImageProblem) or getattr(error, "errno", None) in OF_STORAGE:
                raise
            raise ImageProblem(UNREADABLE, f"the file cannot be read: {type(error).__name__}") from None
        try:
            digest = self._store.add(data)
        except ImageProblem:
            # It may be replaced by a better one.
            self._note(path, digest_of(data))
            raise
        self._note(path, digest)
        return digest

    def _note(self, path: Path, digest: str = "") -> None:
        if self._record is not None:
            self._record.add(path, digest)


def _fetching(store: ImageStore) -> Callable[[str], str]:
    if store.folder is None:
        # For an estimate, nothing is fetched.
        return lambda address: PREFIX + hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
    from easydistill.data.images.fetching import Fetcher

    return Fetcher(store).digest


def with_digests(messages: Iterable[Message], images: RowImages, folder: Path | None) -> list[Message]:
    """The messages of a row with digests in the place of what it holds of its images.

    Raises:
        MalformedRow: an image cannot be used.
    """
    found: list[Message] = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            parts = [
                part if part["type"] == "text" else {**part, "image": images.digest(part["image"], folder)}
                for part in content
            ]
            message = {**message, "content": parts}  # type: ignore[typeddict-item]
        found.append(message)
    return found


# --- what a row holds -------------------------------------------------------------------------------------------


def embedded(source: Any) -> bytes | None:
    """The bytes of an image that the row itself holds: `{"bytes": …}`, a data URL, base 64. None for others.

    Raises:
        ImageProblem: they are not readable.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Mapping):
        held = next((source[name] for name in ("bytes", "data") if source.get(name) is not None), None)
        # Readers of tables give bytes that no text spells as base 64.
        return embedded(name_of(source)) if held is None else _bytes_in(held)
    if not isinstance(source, str):
        return None
    text = source.strip()
    if text[:5].lower() == "data:":
        return _in_data_url(text)
    if len(text) >= _SHORTEST and text.startswith(_BEGINNINGS) and "." not in text[:_SHORTEST]:
        return _base64(text)
    return None


def _bytes_in(held: Any) -> bytes:
    if isinstance(held, bytes | bytearray | memoryview):
        return bytes(held)
    if isinstance(held, str):
        data = embedded(held)
        return data if data is not None else _base64(held) if _is_base64(held) else held.encode("utf-8", "replace")
    if isinstance(held, list) and all(isinstance(value, int) and 0 <= value < 256 for value in held):
        return bytes(held)
    raise ImageProblem(UNREADABLE, "the image's `bytes` are none")


def _is_base64(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", text) is not None


def _in_data_url(text: str) -> bytes:
    head = _DATA_URL.match(text)
    if head is None:
        raise ImageProblem(UNREADABLE, "the data URL is malformed")
    body = text[head.end() :]
    if head[3] is None:
        return urllib.parse.unquote_to_bytes(body)
    return _base64(urllib.parse.unquote(body) if "%" in body else body)


def _base64(text: str) -> bytes:
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise ImageProblem(TOO_LARGE, f"the image has more than {MOST_BYTES:,} bytes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageProblem(UNREADABLE, "the image's base 64 is broken") from None


def name_of(source: Any) -> str | None:
    """The path or address that a row names an image by."""
    if isinstance(source, Mapping):
        source = next((source[name] for name in ("url", "path", "image", "file_name") if source.get(name)), None)
    return source.strip() if isinstance(source, str) and source.strip() else None


def shown(source: Any) -> str:
    """An image's name for messages, before what is wrong with it; nothing for one that the row itself holds."""
    name = name_of(source)
    if name is None or len(name) > 300 or name[:5].lower() == "data:":
        return ""
    # Addresses may hold keys.
    return f"{name.partition('?')[0] if '://' in name else without_base64(name)!r}: "
