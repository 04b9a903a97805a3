"""Small copies of the images of rows that the report shows, as files beside it: a report holds no image itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from easydistill.data.files import replacing
from easydistill.data.images.normalise import SUFFIXES, as_png, pillow
from easydistill.data.images.store import FOLDER, PREFIX, stored_digest
from easydistill.errors import MissingExtra
from easydistill.report.values import as_text

THUMBNAILS = "report_images"
"""Folder of the thumbnails, in the run directory."""
SIDE = 160
"""Most pixels of a thumbnail's side."""
MOST = 4
"""Images of a row that are shown."""


def thumbnails(paths: Iterable[str], folder: Path, run: Path) -> tuple[str, ...]:
    """Make thumbnails of images of the run; returns their paths from the run directory.

    Args:
        paths: as a file in `folder` names them. What is no image of this run is left out.
    """
    return _made(((folder / path).resolve() for path in list(paths)[:MOST]), run)


def thumbnails_of(messages: Iterable[Mapping[str, Any]], run: Path) -> tuple[str, ...]:
    """The same of the images in messages, which name them by their digests."""
    contents = (message.get("content") for message in messages)
    parts = (part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict))
    stems = [as_text(part.get("image")).removeprefix(PREFIX) for part in parts if part.get("type") == "image"]
    paths = ((run / FOLDER / f"{stem}{suffix}").resolve() for stem in stems[:MOST] for suffix in SUFFIXES.values())
    return _made((path for path in paths if path.is_file()), run)


def _made(sources: Iterable[Path], run: Path) -> tuple[str, ...]:
    images = (run / FOLDER).resolve()
    made = (_thumbnail(source, run) for source in sources if source.parent == images and stored_digest(source))
    return tuple(name for name in made if name is not None)


def _thumbnail(source: Path, run: Path) -> str | None:
    target = run / THUMBNAILS / f"{source.stem}.png"
    if not target.is_file():
        try:
            with pillow().open(source) as image:
                image.thumbnail((SIDE, SIDE))
                with replacing(target) as temporary:
                    temporary.write_bytes(as_png(image.convert("RGB")))
        except (MissingExtra, OSError):
            # A report is written all the same.
            return None
    return f"{THUMBNAILS}/{target.name}"
