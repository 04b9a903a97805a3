"""Checkpoints whose weights have other names than the model's parameters are loaded whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.vision_models import FAMILIES, make_model, make_processor

from easydistill.errors import ModelError
from easydistill.methods.shared.renamed import load_renamed


@pytest.mark.parametrize("shard", ["50GB", "40KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_every_family_is_loaded(family: str, shard: str, tmp_path: Path) -> None:
    tokenizer = make_processor(family).tokenizer
    saved, model = make_model(family, tokenizer, 1), make_model(family, tokenizer, 2)
    saved.save_pretrained(tmp_path, max_shard_size=shard)
    if not load_renamed(model, tmp_path):
        # What Trainer does then.
        parts = [load_file(path) for path in tmp_path.glob("*.safetensors")]
        found = model.load_state_dict({name: value for part in parts for name, value in part.items()}, strict=False)
        assert not found.unexpected_keys and set(found.missing_keys) <= set(model.all_tied_weights_keys)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_some_families_are_saved_under_other_names(tmp_path: Path) -> None:
    """Without this the test above would show nothing."""
    made = make_model("llava", make_processor("llava").tokenizer)
    made.save_pretrained(tmp_path)
    assert load_renamed(made, tmp_path)
    assert not load_file(tmp_path / "model.safetensors").keys() <= made.state_dict().keys()


def test_parts_of_other_number_types_are_loaded_as_they_were(tmp_path: Path) -> None:
    tokenizer = make_processor("llava").tokenizer
    saved, model = (make_model("llava", tokenizer, seed) for seed in (1, 2))
    for each in (saved, model):
        each.model.vision_tower.to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16 and load_renamed(model, tmp_path)
    for name, value in saved.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype and torch.equal(value, model.state_dict()[name]), name


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tokenizer = make_processor("llava").tokenizer
    make_model("llava", tokenizer, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not the weights of this student"):
        load_renamed(make_model("llava", tokenizer), tmp_path)


def test_without_weights_nothing_is_loaded(tmp_path: Path) -> None:
    assert not load_renamed(make_model("llava", make_processor("llava").tokenizer), tmp_path)
