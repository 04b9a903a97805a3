"""`teacher_kl`: the mean log-probability of the policy's own tokens, and nothing else; other tokens are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.rollouts import in_threads
from transformers import AutoModelForCausalLM, AutoTokenizer

from easydistill.errors import ConfigError, ModelError
from easydistill.rewards import UNJUDGED, Reward, RewardContext, Rollout, WeightedRewards
from easydistill.rewards import teacher_kl as module
from easydistill.rewards.teacher_kl import Config, make


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> list[Rollout]:
    found = []
    for asked, text in (("Six times seven?", "42"), ("And now?", "A longer answer, of some more words."), ("Hi", "")):
        messages = ({"role": "user", "content": asked},)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(Rollout(messages, text, tuple(prompt), (*answer, tokenizer.eos_token_id), True))
    return found


def teaching(tiny_model: Path, tokenizer: Any, **values: Any) -> Reward:
    config = Config.model_validate({"model": str(tiny_model), "dtype": "float32", **values})
    return make(config, RewardContext(tokenizer=tokenizer, device="cpu"))


def by_hand(directory: Path, item: Rollout) -> float:
    """From the definition: all logits, one row."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids_T = torch.tensor([*item.prompt_ids, *item.answer_ids])
    with torch.no_grad():
        logprobs_TV = model(ids_T[None]).logits[0].log_softmax(-1)
    start = len(item.prompt_ids)
    return sum(logprobs_TV[t - 1, ids_T[t]].item() for t in range(start, len(ids_T))) / len(item.answer_ids)


def test_it_is_the_mean_over_the_answers_tokens(
    tiny_model: Path, tokenizer: Any, batch: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [by_hand(tiny_model, item) for item in batch]
    reward = teaching(tiny_model, tokenizer)
    assert reward(batch) == pytest.approx(wanted, abs=1e-5)
    assert reward([]) == []
    # However it is cut: into batches of one row, into slices of one token.
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    alone = teaching(tiny_model, tokenizer, max_batch_tokens=1)
    assert alone(batch[::-1]) == pytest.approx(wanted[::-1], abs=1e-5)
    reward.close()


def test_what_cannot_be_judged(tiny_model: Path, tokenizer: Any, batch: list[Rollout]) -> None:
    first = batch[0]
    strange = Rollout(first.prompt, "?", first.prompt_ids, (len(tokenizer) + 5,), True)
    empty = Rollout(first.prompt, "", first.prompt_ids, (), False)
    found = teaching(tiny_model, tokenizer, max_length=len(first.prompt_ids) + 4)([*batch, strange, empty])
    assert found[0] is not None and found[0] != UNJUDGED
    assert found[1] == UNJUDGED and found[3:] == [UNJUDGED, UNJUDGED]
    # A prompt that the teacher cannot read is not the answer's doing.
    long = Rollout(first.prompt, "42", first.prompt_ids * 2, first.answer_ids, True)
    foreign = Rollout(first.prompt, "42", (len(tokenizer) + 5,), first.answer_ids, True)
    bare = Rollout(first.prompt, "42", (), first.answer_ids, True)
    reward = teaching(tiny_model, tokenizer, max_length=2 * len(first.prompt_ids))
    assert reward([long, foreign, bare]) == [None, None, None]


def test_escaping_the_teacher_does_not_pay(tiny_model: Path, tokenizer: Any, batch: list[Rollout]) -> None:
    first = batch[0]
    strange = Rollout(first.prompt, "?", first.prompt_ids, (len(tokenizer) + 5,), True)
    with WeightedRewards({"teacher_kl": teaching(tiny_model, tokenizer)}, {"teacher_kl": 1.0}) as combined:
        *honest, escaped = combined([*batch, strange])
        assert escaped == min(value for value in honest if value is not None) < 0
        assert combined([strange]) == [None]


def test_a_score_that_is_no_number_is_told_once(
    tiny_model: Path, tokenizer: Any, batch: list[Rollout], caplog: pytest.LogCaptureFixture
) -> None:
    reward: Any = teaching(tiny_model, tokenizer)
    with torch.no_grad():
        reward._model.get_input_embeddings().weight[batch[1].answer_ids[0]] = float("nan")
        reward._model.lm_head.weight = torch.nn.Parameter(torch.randn_like(reward._model.lm_head.weight))
    with caplog.at_level(logging.WARNING):
        found = [*reward(batch), *reward(batch)]
    assert [value == UNJUDGED for value in found] == [False, True, False] * 2
    assert caplog.text.count("rewards.teacher_kl: the model's score is nan") == 1


def test_threads_do_not_disturb_each_other(tiny_model: Path, tokenizer: Any, batch: list[Rollout]) -> None:
    reward = teaching(tiny_model, tokenizer)
    once = reward(batch)
    assert torch.is_grad_enabled()
    for found in in_threads(reward, [batch] * 3):
        assert found == pytest.approx(once, abs=1e-5)


def test_the_policy_that_is_the_teacher_has_the_highest_expectation(tiny_model: Path, tokenizer: Any) -> None:
    """E[log p_T − log p_S] ≤ 0, with equality where both are one: the sum with the entropy term is a −KL."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    prompt = tuple(tokenizer("Once upon", add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs_V = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    reward = teaching(tiny_model, tokenizer)
    top = logprobs_V.topk(50).indices.tolist()
    messages = ({"role": "user", "content": "?"},)
    found = reward([Rollout(messages, "", prompt, (token,), False) for token in top])
    teacher = torch.tensor(found)
    assert torch.allclose(teacher, logprobs_V[top], atol=1e-5)
    same, other = teacher.softmax(-1), torch.full((50,), 1 / 50)
    listed = teacher.log_softmax(-1)
    assert (same * (listed - same.log())).sum() == pytest.approx(0, abs=1e-5)
    assert (other * (listed - other.log())).sum() < 0


def test_other_tokens_are_refused_before_weights_are_read(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tiny_model / "config.json").read_text())
    changed = AutoTokenizer.from_pretrained(tiny_model)
    changed.save_pretrained(other)
    path = other / "tokenizer.json"
    import json

    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["the"], vocabulary["of"] = vocabulary["of"], vocabulary["the"]
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"rewards\.teacher_kl\.model.*number their tokens differently") as told:
        teaching(other, tokenizer)
    assert "distillation.align" not in str(told.value)
    with pytest.raises(ModelError):
        teaching(tmp_path / "nowhere", tokenizer)
