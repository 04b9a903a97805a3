"""An image as it was given → the copy that teacher and student look at.

Libraries differ in how they treat a photograph's rotation, transparency, colour spaces and animations, so all of it is
settled here once: upright, the first frame, on white, 8-bit RGB. An image that is so already keeps its bytes; another
one is written as PNG, without loss.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

from easydistill.errors import MissingExtra

NORMALISER = 1
"""Version of what this module makes of an image; part of the keys of requests with images."""
MOST_PIXELS = 50_000_000
"""Of an image, checked before it is decoded."""
MOST_BYTES = 50_000_000
"""Of an image as it is given."""
TOO_LARGE, UNREADABLE, FORMAT = "image_too_large", "image_unreadable", "image_format"
"""Reasons for which rows with an image are rejected: more pixels or bytes than these; broken or cut off; no PNG, JPEG,
WebP or GIF."""
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""Of the formats that a copy may have."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_ORIENTATION, _TURNED = 0x0112, frozenset({5, 6, 7, 8})
"""EXIF's tag, and its values for images that lie on their side."""
_OTHER_FORMATS = (
    (b"%PDF", "a PDF"),
    (b"BM", "a BMP"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x00\x0cJXL", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
)
_BRANDS = {b"heic": "a HEIC", b"heix": "a HEIC", b"mif1": "a HEIC", b"avif": "an AVIF", b"avis": "an AVIF"}


class ImageProblem(ValueError):
    """Why an image cannot be used.

    Attributes:
        reason: under which rows with it are rejected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Normalised:
    """The copy of an image."""

    data: bytes
    suffix: str
    width: int
    height: int


def inspect(data: bytes) -> tuple[int, int]:
    """Check what an image's beginning tells: its format and its size. Nothing is decoded.

    Returns:
        Width and height of its copy.

    Raises:
        ImageProblem: it cannot be used.
    """
    with _reading():
        image = _opened(data)
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) in _TURNED else (width, height)


def normalise(data: bytes) -> Normalised:
    """The copy of an image.

    Raises:
        ImageProblem: it is too large, broken, cut off, or of another format.
    """
    with _reading():
        image = _opened(data)
        kept = _is_plain(image)
        image.load()
        if kept:
            return Normalised(data, SUFFIXES[image.format], *image.size)
        plain = _on_white(_upright(image))
        return Normalised(as_png(plain), ".png", *plain.size)


def is_normalised(data: bytes) -> bool:
    """Whether an image is a copy that `normalise` could have made.

    Raises:
        ImageProblem: it cannot be used at all.
    """
    with _reading():
        # A copy may have more bytes than an image that is given.
        image = _opened(data, most_bytes=None)
        plain = _is_plain(image)
        image.load()
        return plain


def as_png(image: Any) -> bytes:
    """A Pillow image as PNG."""
    written = io.BytesIO()
    # A copy without the texts and profiles of the original.
    image.save(written, "PNG", icc_profile=None, exif=None)
    return written.getvalue()


def pillow() -> Any:
    """Pillow's module `Image`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("images", "Reading images") from None
    return Image


class _reading:  # noqa: N801 (a context manager)
    """Turns whatever a decoder raises over foreign bytes into an `ImageProblem`."""

    def __enter__(self) -> None:
        self._image = pillow()
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        # Of decompression bombs, which `_opened` measures itself, and of damaged metadata.
        warnings.simplefilter("ignore")

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._caught.__exit__(kind, error, traceback)
        if isinstance(error, self._image.DecompressionBombError):
            raise ImageProblem(TOO_LARGE, _too_many("far more")) from None
        if isinstance(error, Exception) and not isinstance(error, ImageProblem):
            said = str(error).strip() or type(error).__name__
            raise ImageProblem(UNREADABLE, f"the image is broken or cut off ({said[:120]})") from None


def _opened(data: bytes, most_bytes: int | None = MOST_BYTES) -> Any:
    if most_bytes is not None and len(data) > most_bytes:
        raise ImageProblem(TOO_LARGE, f"the image has {len(data):,} bytes; at most {most_bytes:,} are read")
    if not data:
        raise ImageProblem(UNREADABLE, "the image is empty")
    if (named := _other_format(data)) is not None:
        raise ImageProblem(FORMAT, f"the image is {named}; PNG, JPEG, WebP and GIF are read: convert it")
    image_module = pillow()
    try:
        image = image_module.open(io.BytesIO(data), formats=_FORMATS)
    except image_module.UnidentifiedImageError:
        raise ImageProblem(FORMAT, "it is no image, or of another format than PNG, JPEG, WebP and GIF") from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageProblem(TOO_LARGE, _too_many(f"{width}×{height}"))
    return image


def _too_many(size: str) -> str:
    return f"the image has {size} pixels; at most {MOST_PIXELS:,} are read: scale it down"


def _other_format(data: bytes) -> str | None:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in start):
        return "an SVG drawing"
    if data[4:8] == b"ftyp" and (brand := _BRANDS.get(data[8:12])) is not None:
        return brand
    return next((name for magic, name in _OTHER_FORMATS if data.startswith(magic)), None)


def _is_plain(image: Any) -> bool:
    """Whether every library sees the same in an image that is not loaded yet: 8-bit RGB, upright, one frame."""
    if image.format not in SUFFIXES or image.mode != "RGB" or getattr(image, "n_frames", 1) != 1:
        return False
    if "transparency" in image.info or image.getexif().get(_ORIENTATION, 1) != 1:
        return False
    # Of PNG: 16-bit channels are RGB too, once they are decoded.
    return image.format != "PNG" or all(tile[3] in ("RGB", ("RGB",)) for tile in image.tile)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) or image


def _on_white(image: Any) -> Any:
    """An image as 8-bit RGB, what is transparent on white."""
    if image.mode.startswith("I"):
        # 16 bits of grey, which Pillow would cut off above 255.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pillow().new("RGBA", image.size, "white")
        image = pillow().alpha_composite(white, image)
    return image.convert("RGB")
