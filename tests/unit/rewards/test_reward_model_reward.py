"""`reward_model`: the classifier's own number, whatever stands beside a row in its batch."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.rollouts import in_threads, rollout
from tests.support.tiny import tiny_llama
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from easydistill.errors import ModelError
from easydistill.rewards import UNJUDGED, RewardContext, WeightedRewards
from easydistill.rewards.reward_model import Config, make

BATCH = [
    rollout("42"),
    rollout("I would say that it is forty-two, which is six times seven, as everybody knows."),
    rollout("", asked="Say nothing."),
    rollout("41"),
]


def save_classifier(directory: Path, tiny_model: Path, labels: int = 1, pad: int | None = None) -> Path:
    config = tiny_llama(max_position_embeddings=512, num_labels=labels, pad_token_id=pad)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def classifier(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"), tiny_model, pad=0)


def config(directory: Path, **values: Any) -> Config:
    return Config.model_validate({"model": str(directory), "dtype": "float32", **values})


def test_it_is_the_models_number_of_the_chat_in_its_template(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    wanted = []
    for item in BATCH:
        chat = [*item.prompt, {"role": "assistant", "content": item.text}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            wanted.append(model(input_ids=ids).logits[0, 0].item())
    assert len({round(value, 4) for value in wanted}) == len(wanted)
    reward = make(config(classifier), RewardContext(device="cpu"))
    assert reward(BATCH) == pytest.approx(wanted, abs=1e-5)
    assert reward([]) == []
    reward.close()


@pytest.mark.parametrize("pad", [None, 2])
def test_batches_do_not_matter(tiny_model: Path, tmp_path: Path, pad: int | None) -> None:
    """Also where the model names no padding, or pads with the token that ends a turn."""
    directory = save_classifier(tmp_path, tiny_model, pad=pad)
    together = make(config(directory), RewardContext())(BATCH)
    alone = make(config(directory, max_batch_tokens=1), RewardContext())
    assert alone(BATCH) == pytest.approx(together, abs=1e-5)
    assert alone(BATCH[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_a_model_that_names_no_padding_is_read_at_the_last_token(tiny_model: Path, tmp_path: Path) -> None:
    """Where rows end with the very token that would pad: the number is that of the model by itself, row by row."""
    directory = save_classifier(tmp_path, tiny_model, pad=None)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    tokenizer.save_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    assert model.config.pad_token_id is None
    wanted = []
    for item in BATCH:
        chat = [*item.prompt, {"role": "assistant", "content": item.text}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
        assert ids[0, -1] == tokenizer.eos_token_id
        with torch.no_grad():
            wanted.append(model(input_ids=ids).logits[0, 0].item())
    for values in ({}, {"max_batch_tokens": 1}):
        assert make(config(directory, **values), RewardContext())(BATCH) == pytest.approx(wanted, abs=1e-5)


def test_centre_and_what_is_too_long(classifier: Path) -> None:
    plain = make(config(classifier), RewardContext())(BATCH)
    reward = make(config(classifier, centre=1.5, max_length=50), RewardContext())
    found = reward(BATCH)
    assert found[1] == UNJUDGED
    assert [found[0], found[3]] == pytest.approx([plain[0] - 1.5, plain[3] - 1.5], abs=1e-5)
    assert reward([rollout("word " * 600)]) == [UNJUDGED]
    assert reward([rollout("word " * 600, asked="word " * 600), rollout("", asked="word " * 600)]) == [None, None]


def test_escaping_the_model_does_not_pay(classifier: Path) -> None:
    reward = make(config(classifier, centre=100.0), RewardContext())
    with WeightedRewards({"reward_model": reward}, {"reward_model": 2.0}) as combined:
        *honest, escaped = combined([*BATCH, rollout("word " * 600)])
        assert escaped == min(value for value in honest if value is not None) < 0


def test_a_score_that_is_no_number_is_told_once(classifier: Path, caplog: pytest.LogCaptureFixture) -> None:
    reward: Any = make(config(classifier, max_batch_tokens=1), RewardContext())
    once = reward(BATCH[:1])
    token = reward._tokenizer("forty", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        reward._model.get_input_embeddings().weight[token] = float("inf")
    batch = [BATCH[0], rollout("forty"), rollout("forty")]
    with caplog.at_level(logging.WARNING):
        assert reward(batch) == [pytest.approx(once[0]), UNJUDGED, UNJUDGED]
        reward(batch)
    assert caplog.text.count("rewards.reward_model: the model's score is") == 1


def test_threads(classifier: Path) -> None:
    reward = make(config(classifier), RewardContext())
    once = reward(BATCH)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    for found in in_threads(reward, [BATCH] * 3):
        assert found == pytest.approx(once, abs=1e-5)


def test_what_is_no_reward_model(tiny_model: Path, classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a reward model.*LlamaForCausalLM"):
        make(config(tiny_model), RewardContext())
    with pytest.raises(ModelError, match="returns 2 numbers"):
        make(config(save_classifier(tmp_path / "two", tiny_model, labels=2)), RewardContext())
    with pytest.raises(ModelError):
        make(config(tmp_path / "nowhere"), RewardContext())
    bare = shutil.copytree(classifier, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        make(config(bare), RewardContext())
