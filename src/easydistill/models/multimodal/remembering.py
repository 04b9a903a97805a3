"""A model that sees and whose vision tower is not trained: each image goes through the tower once.

seam = find_seam(...)                       # where features are taken (`features.py`), or why they cannot be
files = FeatureFiles(folder / key(...))     # on disk (`feature_files.py`)
remember(vision, model, seam, files, ...)   # computed where they are missing
with put_in(model, seam): RememberedVision(vision, files)   # in the place of `vision`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from easydistill.data.images.normalise import NORMALISER
from easydistill.engine.interrupt import StopSignal
from easydistill.models.multimodal.feature_files import FeatureFiles, Features, together
from easydistill.models.multimodal.features import PIXELS, Seam, connectors_of, kept, taken, tower_of
from easydistill.models.multimodal.vision import Vision

_OF_FILES = ("text_config", "dtype", "architectures", "transformers_version", "_name_or_path")
"""Of a config: what says nothing of how a model sees."""
GROUP_IMAGES = 16
GROUP_TOKENS = 4096
"""Most images, and most image tokens, that go through a tower together."""


class RememberedVision(Vision):
    """What a model sees, with features of images in the place of their pixels."""

    def __init__(self, vision: Vision, remembered: FeatureFiles) -> None:
        super().__init__(vision.processor, vision.files)
        self._remembered = remembered

    def shown(self, digests: Sequence[str]) -> dict[str, Tensor]:
        features, told = together([self._remembered.get(digest) for digest in digests])
        return {PIXELS: features, **told}


def remember(
    vision: Vision, model: Any, seam: Seam, files: FeatureFiles, digests: Sequence[str], stop: StopSignal
) -> None:
    """Compute the features of images that are not in `files` yet.

    Which images are computed together depends on the list alone, so who goes on with it after a kill computes the same.

    Raises:
        Interrupted: `stop` was requested.
    """
    for group in _groups(vision, list(dict.fromkeys(digests))):
        if all(digest in files for digest in group):
            continue
        stop.raise_if_requested()
        files.add(_features(vision, model, seam, group))


def key(vision: Vision, model: Any, seam: Seam, computed: torch.dtype | None) -> str:
    """Changes with everything that the features of an image depend on, beside the image.

    Args:
        computed: the number type of autocast; None without.
    """
    on = next(model.parameters()).device
    told = {
        "processor": vision.processor.identity(),
        "normaliser": NORMALISER,
        "model": type(model).__name__,
        "config": {name: value for name, value in model.config.to_dict().items() if name not in _OF_FILES},
        "seam": [seam.connectors, seam.form.__name__, seam.whole],
        "computed": str(computed),
        "device": on.type if on.type == "cpu" else torch.cuda.get_device_name(on),
        "versions": [torch.__version__, transformers.__version__],
    }
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, value in _weights(model, seam):
        found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _weights(model: Any, seam: Seam) -> Iterator[tuple[str, Tensor]]:
    """The weights and buffers that features depend on."""
    connectors = connectors_of(model)
    inside = {id(value) for module in connectors.values() for value in module.state_dict(keep_vars=True).values()}
    for name, value in tower_of(model).state_dict(keep_vars=True).items():
        if seam.whole or id(value) not in inside:
            yield name, value
    for at, module in connectors.items() if seam.whole else ():
        for name, value in module.state_dict().items():
            yield f"{at}.{name}", value


def _groups(vision: Vision, digests: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    tokens = 0
    for digest in digests:
        more = vision.image_tokens(digest)
        if group and (len(group) == GROUP_IMAGES or tokens + more > GROUP_TOKENS):
            yield group
            group, tokens = [], 0
        group.append(digest)
        tokens += more
    if group:
        yield group


def _features(vision: Vision, model: Any, seam: Seam, group: Sequence[str]) -> dict[str, Features]:
    """The features of some images, which go through the tower together where their pixels have one shape."""
    on = next(tower_of(model).parameters()).device
    each = {digest: vision.shown([digest]) for digest in group}
    alike: dict[Any, list[str]] = {}
    for digest, seen in each.items():
        alike.setdefault(_shape(seen), []).append(digest)
    found: dict[str, Features] = {}
    for digests in alike.values():
        seen = {name: value.to(on) for name, value in _beside([each[digest] for digest in digests]).items()}
        values = taken(model, seam, seen).cpu()
        rows = [each[digest][PIXELS].shape[_axis(each[digest])] for digest in digests]
        # Some models join several patches to one row.
        parts = torch.split(values, [row * len(values) // sum(rows) for row in rows])
        for digest, part in zip(digests, parts, strict=True):
            found[digest] = Features(part, kept(each[digest]))
    return {digest: found[digest] for digest in group}


def _axis(seen: Mapping[str, Tensor]) -> int:
    """Along which axis of their pixels images follow each other: Idefics3's are beside each other in a row of text."""
    return 1 if seen[PIXELS].dim() == 5 else 0


def _shape(seen: Mapping[str, Tensor]) -> tuple[Any, ...]:
    shape = list(seen[PIXELS].shape)
    shape[_axis(seen)] = 0
    return tuple(shape)


def _beside(images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several images as those of one batch."""
    axis = _axis(images[0])
    return {
        name: torch.cat([image[name] for image in images], dim=axis if name.startswith("pixel_") else 0)
        for name in images[0]
    }
