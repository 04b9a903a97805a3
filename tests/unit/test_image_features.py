"""Features of images that are computed once: in five families, and a LLaVA with the tower of the example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.pictures import BLUE, GREEN, RED, picture
from tests.support.vision_models import FAMILIES, PAD, store_of, vision_model
from tests.unit.test_multimodal import ids_of

from easydistill.data.images import ImageStore
from easydistill.engine.interrupt import StopSignal
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.feeding import Feed
from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor
from easydistill.models.multimodal.feature_files import FeatureFiles
from easydistill.models.multimodal.features import Seam, find_seam, put_in
from easydistill.models.multimodal.parts import freeze_others
from easydistill.models.multimodal.remembering import RememberedVision, remember

SIZES = ((40, 28), (16, 16), (20, 50), (24, 24))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return store_of(tmp_path_factory.mktemp("images"), [])[0]


@pytest.fixture(scope="module")
def digests(store: ImageStore) -> list[str]:
    colours = (RED, GREEN, BLUE, (90, 20, 200))
    return [store.add(picture(colour, size)) for colour, size in zip(colours, SIZES, strict=True)]


def seeing(family: str, store: ImageStore, trained: Sequence[Any]) -> tuple[Any, Vision]:
    directory = str(vision_model(family))
    model = load_model(directory, torch.float32).train()
    freeze_others(model, trained)
    return model, Vision(load_processor(directory), store.path)


def row(vision: Vision, name: str, *own: str) -> TokenRow:
    ids = ids_of(vision, *own, answer=f"Answer {name}.")
    learned = np.zeros(len(ids), np.bool_)
    learned[-12:] = True
    return TokenRow(name, ids, learned, images=own)


def rows_of(vision: Vision, digests: Sequence[str]) -> list[TokenRow]:
    """Rows of 0, 1, 2 and 3 images, one of them twice."""
    a, b, c, d = digests
    own = [(a,), (), (b, c), (d, a, d), (c,), (b,)]
    return [row(vision, str(number), *images) for number, images in enumerate(own)]


def steps(model: Any, vision: Vision, rows: Sequence[TokenRow]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few micro-batches, and the sum of their gradients."""
    feed = Feed(
        [[each] for each in rows],
        TrainingConfig(),
        vision.processor.tokenizer.convert_tokens_to_ids(PAD),
        vision=vision,
    )
    fuse_loss(model, cross_entropy_loss(None))
    model.zero_grad()
    losses = []
    for at in (slice(0, 2), slice(2, 4), slice(4, 6), slice(0, 6), slice(1, 2)):
        loss = model(**feed.collate(feed.items[at]))["loss"]
        loss.backward()
        losses.append(loss.item())
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return losses, found


def seam_of(model: Any, vision: Vision, digests: Sequence[str], *, whole: bool) -> Seam:
    return find_seam(model, vision.shown(digests[:2]), whole=whole)


@pytest.mark.parametrize("trained", [("language", "connector"), ("language",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_pixels(
    family: str, trained: tuple[str, ...], store: ImageStore, digests: list[str], tmp_path: Path
) -> None:
    model, vision = seeing(family, store, trained)
    rows = rows_of(vision, digests)
    expected = steps(model, vision, rows)
    seam = seam_of(model, vision, digests, whole="connector" not in trained)
    files = FeatureFiles(tmp_path / "features")
    remember(vision, model, seam, files, digests, StopSignal())
    remembered = RememberedVision(vision, FeatureFiles(tmp_path / "features"))
    calls: list[Any] = []
    tower = model.get_encoder(modality="image")
    tower.register_forward_hook(lambda *given: calls.append(given))
    with put_in(model, seam):
        losses, gradients = steps(model, remembered, rows)
    assert not calls
    assert losses == expected[0]
    assert gradients.keys() == expected[1].keys()
    connected = [
        name for name in gradients if "language" not in name and "text_model" not in name and "lm_head" not in name
    ]
    assert bool(connected) == ("connector" in trained)
    for name, value in expected[1].items():
        assert torch.equal(gradients[name], value), name
    assert steps(model, vision, rows)[0] == expected[0] and calls
