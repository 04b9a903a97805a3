"""Small copies of the images of rows that the report shows, as files beside it: a report holds no image itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from easydistill.data.files import replacing
from easydistill.data.images.normalise import as_png, pillow
from easydistill.data.images.store import FOLDER, stored_digest
from easydistill.errors import MissingExtra

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
    images = (run / FOLDER).resolve()
    sources = [(folder / path).resolve() for path in list(paths)[:MOST]]
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
