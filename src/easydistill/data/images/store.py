"""The images of a run: files by digest, in a folder that holds nothing else.

A file is named by the digest of the image as it was given, and holds the normalised copy. So a stage that reads what an
earlier one wrote (`images: ["../../images/<digest>.png"]`) finds the digests that the rows had, and a folder of images
can be used by other runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from easydistill.data.files import link_or_copy, read_json, replacing, write_json
from easydistill.data.images.normalise import NORMALISER, SUFFIXES, as_png, inspect, is_normalised, normalise, pillow
from easydistill.errors import DataError

FOLDER = "images"
"""Of a run's images, in the run directory."""
MARKER = "images.json"
"""In a folder of images: which version of the normaliser made them."""
PREFIX = "sha256:"
_NAME = re.compile(r"[0-9a-f]{64}\.(?:png|jpg|webp)")
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


def digest_of(data: bytes) -> str:
    """What an image is known by: the SHA-256 of its bytes as they were given."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def stored_digest(path: Path) -> str | None:
    """The digest that a file of a folder of images stands for; None for any other file."""
    if not _NAME.fullmatch(path.name) or not path.is_file():
        return None
    return PREFIX + path.stem if _version(path.parent) == NORMALISER else None


def _version(folder: Path) -> Any:
    try:
        found = read_json(folder / MARKER)
    except (OSError, ValueError):
        return None
    return found.get("normaliser") if isinstance(found, dict) else None


class ImageStore:
    """Normalised images by digest.

    Args:
        folder: where they are; made with the first image. Without one, images are only looked at: they have digests
            and are checked as far as that goes without decoding them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._checked: set[str] = set()

    def add(self, data: bytes) -> str:
        """Take in an image; returns its digest.

        Raises:
            ImageProblem: it cannot be used.
        """
        digest = digest_of(data)
        if self.folder is None:
            if digest not in self._checked:
                inspect(data)
                self._checked.add(digest)
        elif self._found(digest) is None:
            made = normalise(data)
            path = self._prepared() / f"{digest.removeprefix(PREFIX)}{made.suffix}"
            with replacing(path) as temporary:
                temporary.write_bytes(made.data)
            self._files[digest] = path
        return digest

    def take(self, path: Path, *, copied: bool = False) -> str | None:
        """Take in a file of a folder of images, by its name; returns its digest, or None if it is no such file.

        Args:
            copied: the file is one of ours, and is copied, for users may change the one that is made. Another file is
                looked at, for it may have come with foreign rows, and linked.

        Raises:
            ImageProblem: it cannot be used.
        """
        digest = stored_digest(path)
        if digest is not None and self.folder is not None and self._found(digest) is None:
            if not copied and not is_normalised(path.read_bytes()):
                return None
            target = self._prepared() / path.name
            if copied:
                with replacing(target) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                link_or_copy(path, target)
            self._files[digest] = target
        return digest

    def path(self, digest: str) -> Path:
        """The file of an image.

        Raises:
            DataError: there is none.
        """
        found = self._found(digest)
        if found is None:
            raise DataError(f"{self.folder}: the image {digest} is missing\n    → start the run in a new output_dir")
        return found

    def remove(self, digest: str) -> None:
        """Remove an image; one that is not there is no error."""
        found = self._found(digest)
        if found is not None:
            found.unlink(missing_ok=True)
        self._files.pop(digest, None)

    def _found(self, digest: str) -> Path | None:
        if digest not in self._files and self.folder is not None:
            stem = digest.removeprefix(PREFIX)
            paths = (self.folder / f"{stem}{suffix}" for suffix in SUFFIXES.values())
            found = next((path for path in paths if path.is_file()), None)
            if found is None:
                return None
            self._files[digest] = found
        return self._files.get(digest)

    def _prepared(self) -> Path:
        """The folder, with its marker.

        Raises:
            DataError: its images were made by another version of the normaliser.
        """
        assert self.folder is not None
        version = _version(self.folder)
        if version is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / MARKER, {"normaliser": NORMALISER})
        elif version != NORMALISER:
            raise DataError(
                f"{self.folder}: its images were made by another version of EasyDistill\n"
                "    → start the run in a new output_dir"
            )
        return self.folder

    # --- for files ------------------------------------------------------------------------------------------

    def paths_from(self, folder: Path, digests: Iterable[str]) -> list[str]:
        """The paths of images as a file in `folder` names them."""
        start = folder.resolve()
        return [Path(os.path.relpath(self.path(digest).resolve(), start)).as_posix() for digest in digests]

    # --- for servers ----------------------------------------------------------------------------------------

    def data_url(self, digest: str, most_pixels: int | None = None) -> str:
        """An image as a data URL, scaled down to at most `most_pixels`."""
        path = self.path(digest)
        data, kind = path.read_bytes(), _TYPES[path.suffix]
        if most_pixels is not None and (smaller := scaled_down(data, most_pixels)) is not None:
            data, kind = smaller, _TYPES[".png"]
        return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

    def filled(self, body: Mapping[str, Any], most_pixels: int | None = None) -> dict[str, Any]:
        """The body of a request with data URLs in the place of digests."""
        messages = [self._filled(message, most_pixels) for message in body["messages"]]
        return {**body, "messages": messages}

    def filled_line(self, line: bytes, most_pixels: int | None = None) -> bytes:
        """A line of a batch's file with data URLs in the place of digests."""
        if PREFIX.encode() not in line:
            return line
        value = json.loads(line)
        value["body"] = self.filled(value["body"], most_pixels)
        return json.dumps(value, separators=(",", ":")).encode()

    def _filled(self, message: dict[str, Any], most_pixels: int | None) -> dict[str, Any]:
        if not isinstance(message.get("content"), list):
            return message
        return {**message, "content": [self._filled_part(part, most_pixels) for part in message["content"]]}

    def _filled_part(self, part: dict[str, Any], most_pixels: int | None) -> dict[str, Any]:
        if part.get("type") != "image_url":
            return part
        image = part["image_url"]
        return {**part, "image_url": {**image, "url": self.data_url(image["url"], most_pixels)}}


def scaled_down(data: bytes, most_pixels: int) -> bytes | None:
    """An image with at most `most_pixels` pixels, as PNG; None if it has no more."""
    image = pillow().open(io.BytesIO(data))
    if scaled_size(image.size, most_pixels) == image.size:
        return None
    return as_png(scaled(image, most_pixels))


def scaled(image: Any, most_pixels: int) -> Any:
    """An image in RGB with at most `most_pixels` pixels."""
    size, whole = scaled_size(image.size, most_pixels), image.convert("RGB")
    return whole if size == image.size else whole.resize(size, pillow().Resampling.LANCZOS)


def scaled_size(size: tuple[int, int], most_pixels: int) -> tuple[int, int]:
    """The (width, height) of an image that is scaled down to at most `most_pixels` pixels."""
    width, height = size
    if width * height <= most_pixels:
        return size
    share = (most_pixels / (width * height)) ** 0.5
    return max(1, min(int(width * share), most_pixels)), max(1, min(int(height * share), most_pixels))
