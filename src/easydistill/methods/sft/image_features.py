"""A model that sees, on features of rows' images that are computed once: trained, if its tower is not, and measured.

Gradients, losses, weights and figures are those of pixels, bit for bit on a CPU. (A GPU may round differently where
other images are in the batch.)
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from easydistill.config.training import Part
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, ConfigIssue, EasyDistillError
from easydistill.methods.shared.ranks import rank, together
from easydistill.methods.shared.strategies.base import strategy
from easydistill.models.loading import device
from easydistill.models.multimodal.feature_files import FeatureFiles
from easydistill.models.multimodal.features import NoSeam, Seam, connectors_of, find_seam, put_in, taken, tower_of
from easydistill.models.multimodal.parts import Parts
from easydistill.models.multimodal.remembering import RememberedVision, key, remember

if TYPE_CHECKING:
    from easydistill.methods.sft.feeding import Feed
    from easydistill.models.multimodal import Vision

WORTH = 1.2
"""How often an image must be seen on average for `auto` to keep what the tower makes of it."""
DISK_SHARE = 0.5
"""Of the free disk that features may take."""
PATIENCE = 90
"""Seconds in which another machine's files come to be seen."""
_FIELD = "training.cache_image_features"


@dataclass(frozen=True)
class Kept:
    """Features on disk."""

    seam: Seam
    folder: Path


def on_features(
    model: Any,
    feed: Feed,
    folder: Path | None,
    bf16: bool,
    reporter: Reporter,
    stop: StopSignal,
    undo: contextlib.ExitStack,
) -> Feed:
    """The feed with features of images in the place of their pixels, which the model then takes, or the feed itself.

    All processes call it. The first computes what is missing.

    Args:
        model: the student, bare, as it will be trained: its parts that stay as they are are frozen.
        folder: where features are kept; None to do without.
        bf16: whether batches are computed in bfloat16.
        undo: makes the model take pixels again.

    Raises:
        ConfigError: features must be kept, and cannot be.
        Interrupted: `stop` was requested.
    """
    wanted, vision = feed.config.cache_image_features, feed.vision
    digests = [digest for item in feed.items for row in item for digest in row.images]
    if wanted is False or vision is None or folder is None or not digests:
        return feed
    found: Kept | str | None = _why_pixels(model, feed, digests)
    if found is None:
        whole = "connector" not in _trained(model)
        compute = functools.partial(_kept, model, vision, digests, folder, bf16, reporter, stop, whole=whole)
        with _training(model):
            found = together(lambda: compute() if rank() == 0 else None)[0]
    if isinstance(found, Kept):
        undo.enter_context(put_in(model, found.seam))
        return replace(feed, vision=RememberedVision(vision, _written(found.folder, digests)))
    if wanted is True:
        raise ConfigError(ConfigIssue("config", _FIELD, f"{found}", 'set it to "auto", which does without'))
    return feed


def _written(folder: Path, digests: Sequence[str]) -> FeatureFiles:
    """What the first process has written.

    Raises:
        EasyDistillError: this machine does not come to see it.
    """
    for _ in range(PATIENCE):
        files = FeatureFiles(folder)
        if all(digest in files for digest in digests):
            return files
        # Storage that machines share may show new files late.
        time.sleep(1)
    raise EasyDistillError(
        f"{folder}: this process does not see what the first one wrote there\n"
        "    → put output_dir on storage that all machines share, or set training.cache_image_features=false"
    )


def _why_pixels(model: Any, feed: Feed, digests: Sequence[str]) -> str | None:
    """Why features are not kept, according to what is trained and how long."""
    if "vision" in _trained(model):
        return "the vision tower is trained, so what it makes of an image changes"
    if feed.config.cache_image_features == "auto" and len(digests) * feed.passes < WORTH * len(set(digests)):
        return "most images are seen once"
    return None


@contextlib.contextmanager
def seen_once(
    model: Any, vision: Vision | None, digests: Sequence[str], folder: Path, reporter: Reporter, stop: StopSignal
) -> Iterator[Vision | None]:
    """In this context a model that is not trained takes features of images, as what is yielded gives them; where that
    cannot be, pixels.

    Args:
        vision: what it sees of images, if it does.
        digests: the images that it will be shown.
        folder: where features are kept.
    """
    if vision is None or not digests or getattr(model, "hf_device_map", None) is not None:
        yield vision
        return
    # What the tower makes is the same before and after a training that leaves it as it is.
    found = _kept(model, vision, digests, folder, False, reporter, stop, whole=False)
    if not isinstance(found, Kept):
        yield vision
        return
    with put_in(model, found.seam):
        yield RememberedVision(vision, FeatureFiles(found.folder))


def _kept(
    model: Any,
    vision: Vision,
    digests: Sequence[str],
    folder: Path,
    bf16: bool,
    reporter: Reporter,
    stop: StopSignal,
    *,
    whole: bool,
) -> Kept | str:
    """Features of all images on disk, computed where they are missing; or why not."""
    with _seeing(model) as on, torch.autocast(on.type, torch.bfloat16, enabled=bf16):
        probe = {name: value.to(on) for name, value in vision.shown(digests[:2]).items()}
        try:
            seam = find_seam(model, probe, whole=whole)
        except NoSeam as problem:
            return str(problem)
        images = list(dict.fromkeys(digests))
        own = folder / key(vision, model, seam, torch.bfloat16 if bf16 else None)
        files = FeatureFiles(own)
        missing = [digest for digest in images if digest not in files]
        if not missing:
            return Kept(seam, own)
        size = _size(taken(model, seam, probe), vision, digests[:2], missing)
        room = shutil.disk_usage(_existing(folder)).free
        if size > DISK_SHARE * room:
            return f"features of {len(missing)} images take {size / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free"
        reporter.say(
            f"  computing the vision tower's features of {len(missing)} images once ({size / 1e6:.0f} MB on disk)"
        )
        remember(vision, model, seam, files, images, stop)
    return Kept(seam, own)


def _size(values: torch.Tensor, vision: Vision, shown: Sequence[str], images: Sequence[str]) -> float:
    """Bytes of the features of images, according to those of a few."""
    each = values.numel() * values.element_size() / sum(map(vision.image_tokens, shown))
    return each * sum(map(vision.image_tokens, images))


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.is_dir())


def _trained(model: Any) -> set[Part]:
    parts = Parts(model)
    return {parts.of(name) for name, value in model.named_parameters() if value.requires_grad}


@contextlib.contextmanager
def _training(model: Any) -> Iterator[None]:
    mode = model.training
    model.train()
    try:
        yield
    finally:
        model.train(mode)


@contextlib.contextmanager
def _seeing(model: Any) -> Iterator[torch.device]:
    """The device on which the model sees in this context."""
    on = device()
    modules = [tower_of(model), *connectors_of(model).values()]
    before = next(tower_of(model).parameters()).device
    for module in modules:
        module.to(on)
    try:
        yield on
    finally:
        if strategy().shards:
            for module in modules:
                module.to(before)
