"""The images of a padded batch, for trainers on TRL: rows carry ids and digests, and their tensors are made here.

TRL takes the tensors of a round's images apart for micro-batches, in a way for each family of models. Here a
micro-batch's tensors are made from its rows, which is the same for all families.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from easydistill.config.training import TrainerConfig
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.shared.ranks import world_size

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision
    from easydistill.models.multimodal.vision import ImageRow


def check_images(config: TrainerConfig, images: Iterable[Sequence[str]]) -> None:
    """Check that a training without the language model has something to learn.

    Args:
        images: those of each row.

    Raises:
        ConfigError: only what sees images is to be trained, and no row has any.
    """
    if config.learns_of_text or any(images):
        return
    parts = " and ".join(config.train_parts or ())
    problem = f"of a student that sees images {parts} is to be trained, and no row that is trained on has an image"
    hint = 'add "language", or rows with images'
    raise ConfigError(ConfigIssue("config", "training.train_parts", problem, hint))


def sight_test(vision: Vision | None, rows: Sequence[ImageRow]) -> dict[str, Any] | None:
    """What `check_head` shows a student that sees images: a short row with some; None where no row has any."""
    row = min((row for row in rows if row[1]), key=lambda row: len(row[0]), default=None)
    if vision is None or row is None:
        return None
    ids_1T = torch.tensor([[int(token) for token in row[0]]])
    return {"input_ids": ids_1T, **vision.inputs(ids_1T, [row])}


@dataclass(frozen=True)
class ShownBatch:
    """Rows as a model that sees images is given them; a companion of theirs, if there is one, comes last."""

    ids_BL: Tensor
    mask_BL: Tensor
    seen: dict[str, Tensor]
    """What it is given beside ids and mask, by the names of its `forward`."""


@dataclass(frozen=True, eq=False)
class ShownImages:
    """Makes batches of rows whose prompts have images.

    Args:
        rows: all prompts of the training, as (ids, digests).
        padding: the padding token.
        learns_of_text: as `TrainerConfig.learns_of_text`.
    """

    vision: Vision
    rows: Sequence[ImageRow]
    padding: int
    learns_of_text: bool = True

    @cached_property
    def _companion(self) -> ImageRow | None:
        """A short row with an image, which goes with batches of text alone, and of which nothing is learned. Where
        several processes train, one that does not use its vision tower would not take part in what the others wait for;
        where the language model is not trained, a loss of text alone has no gradient."""
        if world_size() == 1 and self.learns_of_text:
            return None
        return min((row for row in self.rows if row[1]), key=lambda row: len(row[0]), default=None)

    def batch(self, ids_BL: Tensor, mask_BL: Tensor, rows: Sequence[ImageRow], model: Any) -> ShownBatch:
        """A batch with what its rows show.

        Args:
            ids_BL: padded on the left; what follows the prompts has no images.
            rows: each row's prompt and images.
            model: whose number type its images get.
        """
        companion = self._companion
        if companion is not None and not any(images for _, images in rows):
            ids_BL, mask_BL = self._accompanied(ids_BL, mask_BL, companion[0])
            rows = [*rows, companion]
        return ShownBatch(ids_BL, mask_BL, self.vision.inputs(ids_BL, rows, model.dtype))

    def _accompanied(self, ids_BL: Tensor, mask_BL: Tensor, companion: Any) -> tuple[Tensor, Tensor]:
        """The batch with one row more, widened on the left if that is longer."""
        own_L = torch.tensor([int(token) for token in companion], dtype=ids_BL.dtype, device=ids_BL.device)
        more = max(0, len(own_L) - ids_BL.shape[1])
        ids_BL, mask_BL = pad(ids_BL, (more, 0), value=self.padding), pad(mask_BL, (more, 0))
        before = ids_BL.shape[1] - len(own_L)
        own_mask_L = torch.ones_like(own_L, dtype=mask_BL.dtype)
        return (
            torch.cat([ids_BL, pad(own_L, (before, 0), value=self.padding)[None]]),
            torch.cat([mask_BL, pad(own_mask_L, (before, 0))[None]]),
        )
