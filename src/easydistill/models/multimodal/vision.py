"""The images of a run as a model is given them: expanded placeholders in texts, tensors for batches.

Rows hold ids and digests, never tensors. An image is opened for its size when its row is rendered, and read when a
batch with it is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.data.images.normalise import pillow
from easydistill.data.images.store import scaled, scaled_size
from easydistill.errors import DataError, EasyDistillError
from easydistill.models.multimodal.processors import OF_TEXT, Processor

if TYPE_CHECKING:
    import torch

    from easydistill.data.tokens import TokenIds

IMAGE_COUNT, IMAGE_MARK = "image_count", "image_placeholder"
"""Reasons for which rows are rejected: their template shows another number of images than they have; their text holds a
placeholder of images itself."""

ImageFiles = Callable[[str], Path]
"""Digest → the file of the normalised copy, as `ImageStore.path`."""
ImageRow = tuple["TokenIds", Sequence[str]]
"""Ids with expanded placeholders, and the digests of the images in their order."""


class VisionProblem(ValueError):
    """Why a row cannot be shown to a model.

    Attributes:
        reason: under which it is rejected.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Vision:
    """What a model sees: its processor, and the files of the images.

    Args:
        files: gives the file of an image.
        most_pixels: images with more pixels are scaled down to this number before the processor is given them.
    """

    def __init__(self, processor: Processor, files: ImageFiles, most_pixels: int | None = None) -> None:
        self.processor = processor
        self.files = files
        self._most_pixels = most_pixels
        self._sizes: dict[str, tuple[int, int]] = {}
        self._runs: dict[tuple[int, int], tuple[str, int]] = {}

    # --- texts ----------------------------------------------------------------------------------------------

    def check_text(self, texts: Iterable[str]) -> None:
        """Check what users and models wrote, before a template adds placeholders.

        Raises:
            VisionProblem: it holds a placeholder.
        """
        for text in texts:
            if (found := next((mark for mark in self.processor.reserved if mark in text), None)) is not None:
                raise VisionProblem(IMAGE_MARK, f"the text holds {found!r}, which stands for an image in this model")

    def expand(self, text: str, digests: Sequence[str]) -> str:
        """A rendered chat, or a piece of one, with each bare placeholder replaced by what the processor writes for its
        image.

        Args:
            digests: the images of the text, in order.

        Raises:
            VisionProblem: there are more or fewer placeholders than images, or other tokens of images.
        """
        mark = self.processor.mark
        pieces = text.split(mark)
        if len(pieces) - 1 != len(digests):
            raise VisionProblem(IMAGE_COUNT, _miscounted(len(pieces) - 1, len(digests), mark))
        if not digests:
            return text
        self.check_text(pieces)
        runs = [self._run(digest)[0] for digest in digests]
        return pieces[0] + "".join(run + piece for run, piece in zip(runs, pieces[1:], strict=True))

    def marked(self, ids: TokenIds, digests: Sequence[str]) -> list[int]:
        """Ids with expanded placeholders → the ids with bare ones, for engines that expand them themselves.

        Raises:
            DataError: what the images became is not to be found, since its tokens joined with those around it.
        """
        tokenizer = self.processor.tokenizer
        (mark,) = tokenizer(self.processor.mark, add_special_tokens=False)["input_ids"]
        rest, found = list(map(int, ids)), list[int]()
        for digest in digests:
            run = tokenizer(self._run(digest)[0], add_special_tokens=False)["input_ids"]
            at = next((at for at in range(len(rest)) if rest[at : at + len(run)] == run), None)
            if at is None:
                raise DataError("the tokens of an image join with those around it")
            found += [*rest[:at], mark]
            rest = rest[at + len(run) :]
        return found + rest

    def image_tokens(self, digest: str) -> int:
        """How many image tokens the model is given for an image, without the marks around them."""
        return self._run(digest)[1]

    def _run(self, digest: str) -> tuple[str, int]:
        """What an image's placeholder becomes, and the number of image tokens in it."""
        if digest not in self._sizes:
            with self._opened(digest) as image:
                most = self._most_pixels
                self._sizes[digest] = image.size if most is None else scaled_size(image.size, most)
        size = self._sizes[digest]
        if size not in self._runs:
            # It depends on the image's size alone; `batch` checks that of every image.
            self._runs[size] = self._processed_run(digest)
        return self._runs[size]

    def _processed_run(self, digest: str) -> tuple[str, int]:
        mark = self.processor.mark
        made = self.processor.called([mark], [[self.image(digest)]], return_text_replacement_offsets=True)
        (replaced,) = made["text_replacement_offsets"][0]
        return str(replaced["replacement"]), self.count(made["input_ids"][0])

    # --- tensors --------------------------------------------------------------------------------------------

    def batch(self, rows: Sequence[ImageRow]) -> dict[str, torch.Tensor]:
        """The tensors that a model takes with a batch of rows, beside ids, mask and the types of tokens.

        Args:
            rows: in the order of the batch, with any number of images each.

        Returns:
            By the names of the model's `forward`, on the CPU; nothing if there are no images. Images follow each other
            in the order of the rows; how, is the model's own affair.

        Raises:
            DataError: the ids of a row were made for other images.
        """
        for ids, digests in rows:
            expected, found = sum(map(self.image_tokens, digests)), self.count(ids)
            if expected != found:
                raise DataError(_mismatch(found, expected, digests))
        digests = [digest for _, own in rows for digest in own]
        return self.shown(digests) if digests else {}

    def shown(self, digests: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors that a model takes with some images, as `batch`; at least one.

        Raises:
            DataError: an image takes other tokens than one of its size has taken before.
        """
        # As one text: texts with fewer images than others would be filled up with empty ones.
        text = self.processor.mark * len(digests)
        made = self.processor.called([text], [[self.image(digest) for digest in digests]], return_tensors="pt")
        expected, found = self.count(made["input_ids"][0]), sum(map(self.image_tokens, digests))
        if expected != found:
            raise DataError(_mismatch(found, expected, digests))
        return {name: value for name, value in made.items() if name not in OF_TEXT}

    def inputs(
        self, ids_BT: torch.Tensor, rows: Sequence[ImageRow], dtype: torch.dtype | None = None
    ) -> dict[str, torch.Tensor]:
        """All that a model takes beside the padded ids of a batch of rows, on their device: `type_ids` and `batch`.

        Args:
            dtype: of the model's weights, for those that do not cast what they see themselves.
        """
        images = {name: value.to(ids_BT.device) for name, value in self.batch(rows).items()}
        if dtype is not None:
            images = {name: value.to(dtype) if value.is_floating_point() else value for name, value in images.items()}
        return {**self.type_ids(ids_BT), **images}

    def type_ids(self, ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `Processor.type_ids`."""
        return self.processor.type_ids(ids_BT)

    def count(self, ids: TokenIds | Any) -> int:
        """The number of image tokens among ids."""
        import numpy as np

        return int(np.isin(np.asarray(ids), self.processor.image_token_ids).sum())

    def image(self, digest: str) -> Any:
        """An image as Pillow reads it, and as the processor is given it."""
        with self._opened(digest) as image:
            return image.convert("RGB") if self._most_pixels is None else scaled(image, self._most_pixels)

    def name(self, digest: str) -> str:
        """A name of an image as the processor is given it, for caches."""
        return digest if self._most_pixels is None else f"{digest}, at most {self._most_pixels} pixels"

    @contextlib.contextmanager
    def _opened(self, digest: str) -> Iterator[Any]:
        """
        Raises:
            EasyDistillError: the file is damaged. This is no fault of a row, for which it would be rejected.
        """
        path = self.files(digest)
        try:
            with pillow().open(path) as image:
                yield image
        except OSError as error:
            raise EasyDistillError(
                f"{path}: this copy of an image is damaged: {type(error).__name__}\n"
                "    → remove the file, and start the run again, which makes it anew"
            ) from None


def _miscounted(marks: int, images: int, mark: str) -> str:
    shown = f"{marks} placeholders ({mark})" if marks != 1 else f"one placeholder ({mark})"
    return f"the chat template wrote {shown} for {images} image{'' if images == 1 else 's'}"


def _mismatch(found: int, expected: int, digests: Sequence[str]) -> str:
    return (
        f"a row with {len(digests)} image{'' if len(digests) == 1 else 's'} has {found} image tokens, and its images "
        f"take {expected}: it was rendered for others\n    → start the run in a new output_dir"
    )
