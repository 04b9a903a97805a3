"""Features of images that are computed once: in five families, and a LLaVA with the tower of the example."""

from __future__ import annotations

import functools
import os
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
from easydistill.errors import EasyDistillError, Interrupted
from easydistill.methods.sft import image_features
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.feeding import Feed
from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss
from easydistill.models.loading import load_model
from easydistill.models.multimodal import Vision, load_processor, remembering
from easydistill.models.multimodal.feature_files import FeatureFiles, Features
from easydistill.models.multimodal.features import NoSeam, Seam, find_seam, put_in
from easydistill.models.multimodal.parts import freeze_others
from easydistill.models.multimodal.remembering import RememberedVision, key, remember

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


def test_a_llava_with_another_tower(store: ImageStore, digests: list[str], tmp_path: Path) -> None:
    """The tower of examples/vision, and two of its layers side by side."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(vision_model("llava")).to_dict()
    config["vision_config"] = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    for layers in (-2, [-3, -1]):
        made = AutoConfig.for_model(**{**config, "vision_feature_layer": layers})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(made).train()
        freeze_others(model, ("language", "connector"))
        vision = Vision(load_processor(str(vision_model("llava"))), store.path)
        rows = rows_of(vision, digests)
        expected, gradients = steps(model, vision, rows)
        seam = seam_of(model, vision, digests, whole=False)
        files = FeatureFiles(tmp_path / key(vision, model, seam, None))
        remember(vision, model, seam, files, digests, StopSignal())
        with put_in(model, seam):
            losses, found = steps(model, RememberedVision(vision, files), rows)
        assert losses == expected
        assert all(torch.equal(found[name], value) for name, value in gradients.items())
    assert len(list(tmp_path.iterdir())) == 2


def scaled(model: Any) -> None:
    body = model.base_model
    own = body.get_image_features

    @functools.wraps(own)
    def more(*given: Any, **named: Any) -> Any:
        made = own(*given, **named)
        made.pooler_output = [2 * each for each in made.pooler_output]
        return made

    body.get_image_features = more


def random(model: Any) -> None:
    model.model.vision_tower.config.attention_dropout = 0.1
    for module in model.modules():
        if type(module).__name__ == "CLIPAttention":
            module.dropout = 0.1


def normalised(model: Any) -> None:
    model.model.vision_tower.norm = torch.nn.BatchNorm1d(4)


def twice(model: Any) -> None:
    body = model.base_model
    get = body.get_image_features

    @functools.wraps(get)
    def more(*given: Any, **named: Any) -> Any:
        get(*given, **named)
        return get(*given, **named)

    body.get_image_features = more


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (scaled, "does more with features of images"),
        (random, "random in training"),
        (normalised, "depends on the other images"),
        (twice, "is not called once"),
    ],
)
def test_what_cannot_be_taken_out_is_left_in(change: Any, why: str, store: ImageStore, digests: list[str]) -> None:
    model, vision = seeing("llava", store, ("language", "connector"))
    change(model)
    with pytest.raises(NoSeam, match=why):
        seam_of(model, vision, digests, whole=False)


def test_the_key_is_of_what_sees(store: ImageStore, digests: list[str], tmp_path: Path) -> None:
    model, vision = seeing("qwen2_5_vl", store, ("language", "connector"))
    before, whole = (seam_of(model, vision, digests, whole=kind) for kind in (False, True))
    first, after = key(vision, model, before, None), key(vision, model, whole, None)
    assert len({first, after, key(vision, model, before, torch.bfloat16)}) == 3
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        # The connector is inside of the tower.
        model.model.visual.merger.mlp[0].weight.mul_(2)
    assert key(vision, model, before, None) == first
    assert key(vision, model, whole, None) != after
    with torch.no_grad():
        model.model.visual.blocks[0].attn.qkv.weight[0, 0] += 1
    assert key(vision, model, before, None) != first
    assert key(vision, model.bfloat16(), before, None) != first


def test_features_of_any_shape_are_kept_as_they_are(tmp_path: Path) -> None:
    made = {
        "a": Features(torch.randn(2, 3, 4), {"image_grid_thw": torch.tensor([[1, 2, 3]])}),
        "b": Features(torch.randn(5, 4).bfloat16(), {}),
        "c": Features(torch.randn(4, 6)[:, 1:3], {}),
    }
    files = FeatureFiles(tmp_path)
    files.add({"a": made["a"]})
    files.add({"b": made["b"], "a": made["b"]})
    again = FeatureFiles(tmp_path)
    again.add({"c": made["c"]})
    for each in (again, FeatureFiles(tmp_path)):
        for name, features in made.items():
            found = each.get(name)
            assert torch.equal(found.values, features.values) and found.values.dtype == features.values.dtype
            assert found.told.keys() == features.told.keys()
            assert all(torch.equal(found.told[told], value) for told, value in features.told.items())
    assert "d" not in again and again.bytes == (tmp_path / "values.bin").stat().st_size
    reader = FeatureFiles(tmp_path)
    os.truncate(tmp_path / "values.bin", 10)
    with pytest.raises(EasyDistillError, match=r"values\.bin is incomplete\n    → delete"):
        reader.get("c")
    assert "a" not in FeatureFiles(tmp_path)


def test_a_request_to_stop_is_heard(store: ImageStore, digests: list[str], tmp_path: Path) -> None:
    model, vision = seeing("llava", store, ("language",))
    stop = StopSignal()
    stop.request()
    with pytest.raises(Interrupted):
        remember(vision, model, seam_of(model, vision, digests, whole=True), FeatureFiles(tmp_path), digests, stop)


def test_files_that_other_machines_do_not_see_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            FeatureFiles(tmp_path).add({"a": Features(torch.zeros(1, 2), {})})

    monkeypatch.setattr(image_features.time, "sleep", wait)
    assert "a" in image_features._written(tmp_path, ["a"]) and len(waited) == 3
    with pytest.raises(EasyDistillError, match="storage that all machines share"):
        image_features._written(tmp_path, ["a", "b"])


@pytest.mark.parametrize("left", [b"\0\0\0\0\n", b'{"end": 3\n', b"\xff\xfe\n", b"7\n", b"{}\n", b"\n"])
def test_an_index_with_a_line_of_anything_is_read_up_to_it(left: bytes, tmp_path: Path) -> None:
    made = {name: Features(torch.full((2, 3), float(at)), {}) for at, name in enumerate("abc")}
    files = FeatureFiles(tmp_path)
    files.add({"a": made["a"]})
    files.add({"b": made["b"]})
    first, second = (tmp_path / "index.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "index.jsonl").write_bytes(first + left + second)
    again = FeatureFiles(tmp_path)
    assert "a" in again and "b" not in again
    again.add({"c": made["c"]})
    whole = FeatureFiles(tmp_path)
    for name in "ac":
        assert torch.equal(whole.get(name).values, made[name].values)


def test_the_key_is_of_what_made_the_pictures(
    store: ImageStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, vision = seeing("llava", store, ["language"])
    seam = seam_of(model, vision, digests, whole=True)
    before = key(vision, model, seam, None)
    monkeypatch.setattr(remembering, "NORMALISER", remembering.NORMALISER + 1)
    assert key(vision, model, seam, None) != before
