"""The rows of the user's file as a stage reads them, its images included, and its first rows before anything runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easydistill.config.dataset import RowsConfig
from easydistill.data.images import ImageReader, ImageStore, NoImages, RowImages
from easydistill.data.images.reader import ImageSettings, name_of
from easydistill.data.images.store import FOLDER
from easydistill.data.manifest import NAME as MANIFEST
from easydistill.data.messages import Chat
from easydistill.data.reading import read_rows, read_samples
from easydistill.data.records import Rejection, Sample
from easydistill.data.row_files import rows_of
from easydistill.data.row_files.broken import MalformedRow
from easydistill.data.spool import Rows
from easydistill.engine.stage import StageContext
from easydistill.errors import DataError
from easydistill.methods.shared.foretelling import FirstRows
from easydistill.methods.shared.sight import TRAINS_ON_TEXT


def images_for(dataset: ImageSettings, why_not: str | None, context: StageContext) -> RowImages:
    """Reads the images of a file's rows, or refuses them."""
    if why_not is not None:
        return NoImages(why_not)
    return ImageReader.of(dataset, context.images, context.image_sources)


@contextlib.contextmanager
def one_writer(context: StageContext, *, may_have_images: bool) -> Iterator[None]:
    """Among processes that read the same rows, the first one goes first: the others find the images that it stores."""
    if not may_have_images:
        yield
        return
    from easydistill.methods.shared.ranks import wait_for_all

    if context.rank > 0:
        wait_for_all()
    yield
    if context.rank == 0:
        wait_for_all()


def read_file(
    dataset: RowsConfig,
    path: str | None,
    labelled: bool | None,
    context: StageContext,
    unseen: str | None = TRAINS_ON_TEXT,
) -> tuple[Rows[Sample], list[Rejection]]:
    """The rows of the user's file, read as the `dataset` section says. What is not read of them is told.

    Args:
        unseen: why rows with images are refused; None if they are not.
    """
    assert path is not None, "checked by the job's validators"
    limit, columns = dataset.max_samples, dataset.column_names
    images = images_for(dataset, unseen, context)
    found = read_rows(path, labelled=labelled, limit=limit, columns=columns, images=images)
    context.notice(found.notices)
    return found.samples, found.rejected


def read_made(path: Path, context: StageContext) -> tuple[Rows[Sample], list[Rejection]]:
    """The answered rows that another stage of the run has written.

    Raises:
        DataError: an image of theirs is no longer in the run.
    """
    return read_samples(path, labelled=True, images=ImagesOfRun(context.images))


class ImagesOfRun(ImageReader):
    """Reads images that are in the store already."""

    def digest(self, source: Any, folder: Path | None) -> str:
        try:
            return super().digest(source, folder)
        except MalformedRow:
            assert folder is not None, "a stage writes files"
            lost = Path(str(name_of(source))).name
            raise DataError(
                f"an image of the run is missing or damaged: {FOLDER}/{lost}\n"
                f"    → put it back; or remove {folder / MANIFEST}: the stage reads the images again, and asks for no "
                "answer that it has"
            ) from None


def first_rows(
    dataset: RowsConfig,
    path: str | None,
    labelled: bool | None,
    most: int,
    store: ImageStore,
    unseen: str | None,
) -> FirstRows:
    """At most `most` rows of the user's file, for what is told before anything runs; none without a file.

    Args:
        store: images are looked at in it.
        unseen: why rows with images are refused; None if they are not.
    """
    if path is None:
        return FirstRows()
    limit = min(most, dataset.max_samples or most)
    columns = dataset.column_names
    images = ImageReader.of(dataset, store) if unseen is None else Unseen(unseen)
    try:
        found = read_rows(path, labelled=labelled, limit=limit, columns=columns, images=images)
    except DataError:
        if isinstance(images, Unseen) and images.rows:
            return FirstRows(unseen=images.rows, blindness=images.why)
        raise
    # Answers that need not be there are not learned.
    chats = [Chat.of(row) if labelled else row.prompt_chat for row in found.samples]
    unread = images.rows if isinstance(images, Unseen) else 0
    return FirstRows(chats, found.lines(), unread, unseen or "", total=_total(dataset, path, len(chats), limit))


def _total(dataset: RowsConfig, path: str, read: int, limit: int) -> int | None:
    """How many rows a file has, if more than were read; rows are counted, and not looked at."""
    if read < limit or limit == dataset.max_samples:
        return None
    counted = sum(1 for _ in rows_of(path))
    return min(counted, dataset.max_samples or counted)


class Unseen(NoImages):
    """Counts the rows that it refuses."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why, self.rows = why, 0

    def digest(self, source: Any, folder: Path | None) -> str:
        self.rows += 1
        return super().digest(source, folder)
