"""Reward models that see: a score is that of the model's own forward pass over prompt, images and answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.vision_models import make_config, save_processor
from tests.support.vision_rows import scene

from easydistill.contracts.reward import UNJUDGED, Reward, RewardContext, Rollout
from easydistill.models.multimodal import Vision, load_processor
from easydistill.rewards import reward_model

FAMILY = "gemma3"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with one label of a family that has some, with a processor."""
    from tests.support.vision_models import make_processor
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("seeing-reward")
    processor = make_processor(FAMILY)
    save_processor(FAMILY, processor, folder)
    config = make_config(FAMILY, processor.tokenizer)
    config.num_labels = 1
    config.text_config.num_labels = 1
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.normal_(std=0.1) if name.endswith("mm_input_projection_weight") else value.mul_(4.0)
    model.save_pretrained(folder)
    return folder


def test_a_score_is_that_of_the_image(saved: Path, tmp_path: Path) -> None:
    found = scene(FAMILY, tmp_path)
    config = reward_model.Config(model=str(saved), dtype="float32")
    assert reward_model.blindness(config) is None
    made: Reward = reward_model.make(config, RewardContext(images=found.store.path, device="cpu"))
    asked = ((0,), (), (1, 2), (2,))
    rollouts = [Rollout(found.messages(*own), "A cat.", (1,), (2,), True) for own in asked]
    values = made(rollouts)
    model = reward_model.load_classifier(config, torch.device("cpu"))
    vision = Vision(load_processor(str(saved)), found.store.path)
    tokenizer = vision.processor.tokenizer
    for own, value in zip(asked, values, strict=True):
        chat = [*found.messages(*own), {"role": "assistant", "content": "A cat."}]
        text = vision.expand(tokenizer.apply_chat_template(chat, tokenize=False), found.images(*own))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        given = vision.inputs(torch.tensor([ids]), [(ids, found.images(*own))])
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids]), **given).logits[0, 0].item()
        assert value == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert values[0] != values[3], "only the pictures differ"


def test_an_answer_that_would_be_taken_for_an_image_is_not_judged(saved: Path, tmp_path: Path) -> None:
    found = scene(FAMILY, tmp_path)
    config = reward_model.Config(model=str(saved), dtype="float32")
    made = reward_model.make(config, RewardContext(images=found.store.path, device="cpu"))
    mark = found.vision.processor.mark
    assert made([Rollout(found.messages(0), f"A {mark}", (1,), (2,), True)]) == [UNJUDGED]
