"""Reverse KL over what the teacher lists, by plain formulas: a teacher here and behind a server, killed, refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_on_policy_kd import (
    CHUNK,
    END,
    SEQUENCES,
    VOCABULARY,
    FakeVllm,
    assert_same_bits,
    config,
    job,
    model,
    prompts,
    remote,
    student,
    weights,
)
from tests.support.jobs import run_here, write_config
from tests.support.killed import Killed
from transformers import AutoTokenizer

from easydistill.config.training import LoraConfig
from easydistill.contracts.teacher import Failure
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import TeacherError
from easydistill.methods.on_policy import top_k
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.shared.rollouts import LocalScores, Written
from easydistill.models.head import Head
from easydistill.models.loading import load_model, load_tokenizer

K = 5


@pytest.fixture(scope="session")
def tokenizer(smollm: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm)


class ListingVllm(FakeVllm):
    """Also lists the most probable tokens, as many as it was asked for, and the prompt's own."""

    def prompt_logprobs(self, ids: list[int]) -> list[Any]:
        found = super().prompt_logprobs(ids)
        wanted = self.asked[-1]["prompt_logprobs"]
        with torch.no_grad():
            logprobs_TV = self.teacher(torch.tensor([ids])).logits[0].log_softmax(-1)
        for at, entry in enumerate(found[1:]):
            top = logprobs_TV[at].topk(wanted)
            for token, logprob in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                entry.setdefault(str(token), {"logprob": logprob, "rank": 2, "decoded_token": self.spell(token)})
        return found


@pytest.fixture
def listing() -> Iterator[ListingVllm]:
    server = ListingVllm(model(1))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def train(trained: Any, scores: Any, folder: Path, training: Any = None, rows: Any = None, **values: Any) -> Any:
    section = OnPolicyConfig(objective="top_k_reverse_kl", **({"max_new_tokens": 12, "top_k": K} | values))
    shared = (training or config(), section, folder, Reporter(None, quiet=True), StopSignal())
    return top_k.train(trained, rows or prompts(10), scores, *shared)


def local(teacher: Any) -> LocalScores:
    return LocalScores(teacher, END, CHUNK)


def logprobs(who: Any, item: Written) -> torch.Tensor:
    with torch.no_grad():
        return who(torch.tensor([item.ids])).logits[0, len(item.prompt) - 1 : -1].log_softmax(-1)


def listed_kl(own: Any, teacher: Any, item: Written, k: int) -> float:
    """Reverse KL of the distributions in which all tokens but the teacher's k most probable and the drawn one are one
    outcome."""
    total = 0.0
    for s, t, token in zip(logprobs(own, item), logprobs(teacher, item), item.completion, strict=True):
        kept = sorted({token, *t.topk(k).indices.tolist()})
        rest = [v for v in range(len(s)) if v not in kept]
        total += float((s[kept].exp() * (s[kept] - t[kept])).sum())
        if rest:
            mine, theirs = s[rest].exp().sum(), t[rest].exp().sum()
            total += float(mine * (mine / theirs).log())
    return total


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Written]]:
    found: list[list[Written]] = []
    update = top_k.TopKTraining.update
    watched = lambda self, batch: (found.append(list(batch)), update(self, batch))[1]  # noqa: E731
    monkeypatch.setattr(top_k.TopKTraining, "update", watched)
    return found


@pytest.mark.parametrize("k", [1, K, VOCABULARY])
def test_the_loss_is_the_one_that_is_documented(
    k: int, batches: list[list[Written]], tokenizer: Any, tmp_path: Path
) -> None:
    """And once all tokens are listed it is the whole reverse KL."""
    own, teacher = model(0), model(1)
    outcome = train(student(tokenizer), local(teacher), tmp_path, config(max_steps=1), top_k=k)
    (batch,) = batches
    assert {item.rolled for item in batch} == {True, False}
    total = 0.0
    for item in batch:
        if item.rolled:
            total += listed_kl(own, teacher, item, k)
            if k == VOCABULARY:
                s, t = logprobs(own, item), logprobs(teacher, item)
                assert listed_kl(own, teacher, item, k) == pytest.approx(float((s.exp() * (s - t)).sum()), rel=1e-4)
        else:
            places = torch.arange(len(item.completion))
            total -= float(logprobs(own, item)[places, torch.tensor(item.completion)].sum())
    count = sum(len(item.completion) for item in batch)
    assert outcome.final_loss == pytest.approx(total / count, rel=1e-4)
    assert outcome.trained_tokens == count


def written(own: Any, teacher: Any, k: int) -> list[Written]:
    """Rollouts as the loop has them, of texts that were not drawn by anyone."""
    lists = local(teacher).lists(SEQUENCES, k, StopSignal())
    return [
        Written("x", ids[:start], ids[start:], rolled=True, teacher=listed.own, listed=listed.ids,
                listed_logprobs=listed.logprobs)
        for (ids, start), listed in zip(SEQUENCES, lists, strict=True)
    ]  # fmt: skip


def test_the_gradient_is_that_of_autograd_and_of_the_whole_divergence() -> None:
    teacher = model(1)

    def gradient(k: int) -> torch.Tensor:
        own = model(0)
        part = written(own, teacher, k)
        targets = top_k.targets_of(part, k, VOCABULARY, torch.device("cpu"))
        sequences = [(item.ids, len(item.prompt)) for item in part]
        hidden_ND, target_N = top_k.completion_states(own, sequences, END)
        objective = top_k.Objective(divergence=top_k._reverse_kl, kd_ratio=0.5)
        (2 * top_k.linear_distillation(hidden_ND, Head.of(own), target_N, targets, objective).total).backward()
        return own.lm_head.weight.grad

    def plain(k: int) -> torch.Tensor:
        own, total = model(0), torch.zeros(())
        for item in written(own, teacher, k):
            s_TV = own(torch.tensor([item.ids])).logits[0, len(item.prompt) - 1 : -1].log_softmax(-1)
            for s, t, token in zip(s_TV, logprobs(teacher, item), item.completion, strict=True):
                kept = torch.zeros(VOCABULARY, dtype=torch.bool)
                kept[[token, *t.topk(k).indices.tolist()]] = True
                total = total + (s[kept].exp() * (s[kept] - t[kept])).sum()
                if not kept.all():
                    mine, theirs = s[~kept].exp().sum(), t[~kept].exp().sum()
                    total = total + mine * (mine / theirs).log()
        total.backward()
        return own.lm_head.weight.grad

    for k in (K, VOCABULARY):
        torch.testing.assert_close(gradient(k), plain(k), rtol=1e-3, atol=1e-5)


def test_tokens_without_a_score_and_of_other_heads_are_no_outcomes() -> None:
    item = Written("x", [5], [6, 7], rolled=True, teacher=[float("nan"), -1.0], listed=[[8, 9], [8, 99]],
                   listed_logprobs=[[-1.0, -2.0], [-1.5, -9.0]])  # fmt: skip
    answer = Written("y", [5], [6], rolled=False)
    found = top_k.targets_of([item, answer], 2, 64, torch.device("cpu"))
    assert found.present_N.tolist() == [False, True, False]
    assert found.labelled_N.tolist() == [False, False, True]
    assert found.ids_NM.tolist()[1] == [7, 8, 7]
    assert found.logweights_NM[1].exp().tolist() == pytest.approx([0.3679, 0.2231, 0], abs=1e-4)
    assert float(found.log_rest_N[1].exp()) == pytest.approx(1 - 0.3679 - 0.2231, abs=1e-4)
    assert not torch.cat([found.logweights_NM.flatten(), found.log_rest_N]).isnan().any()


def test_a_server_lists_what_a_teacher_here_does(listing: ListingVllm) -> None:
    here, there = (
        who.lists(SEQUENCES, K, StopSignal()) for who in (local(listing.teacher), remote(listing, timeout=60))
    )
    assert {asked["prompt_logprobs"] for asked in listing.asked} == {K}
    for one, other in zip(here, there, strict=True):
        assert one.ids == other.ids
        assert one.own == pytest.approx(other.own, abs=1e-5)
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)


def test_servers_that_list_too_little_are_explained(listing: ListingVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListingVllm, "prompt_logprobs", FakeVllm.prompt_logprobs)
    with pytest.raises(TeacherError, match=r"lists 1 tokens in the place of one, and 5 were asked for"):
        remote(listing, timeout=60).lists(SEQUENCES, K, StopSignal())


def test_servers_that_were_started_for_fewer_are_explained(listing: ListingVllm) -> None:
    """As vLLM 0.32 says it."""
    said = "Requested prompt logprobs of 50, which is greater than max allowed: 20"
    told = str(remote(listing)._client.given_up(Failure("0", "http_400", said, 1, passing=False)))
    assert said in told
    assert "--max-logprobs of on_policy.top_k at least" in told


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("die_at", [2, 5])
def test_a_killed_training_ends_in_the_same_weights_bit_for_bit(
    die_at: int, lora: bool, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = config(max_steps=6, lora=LoraConfig(r=2) if lora else None)
    whole, resumed, update, count = student(tokenizer), student(tokenizer), top_k.TopKTraining.update, 0
    expected = train(whole, local(model(1)), tmp_path / "whole", training, steps_per_rollout=3)

    def dying(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == die_at:
            raise Killed
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(top_k.TopKTraining, "update", dying)
        with pytest.raises(Killed):
            train(student(tokenizer), local(model(1)), tmp_path / "killed", training, steps_per_rollout=3)
    found = train(resumed, local(model(1)), tmp_path / "killed", training, steps_per_rollout=3)
    assert found.resumed_from_step == (die_at - 1) // 2 * 2
    assert_same_bits(weights(whole), weights(resumed))
    assert found.final_loss == expected.final_loss


def test_the_whole_job_with_a_server(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spelling = load_tokenizer(str(tiny_model))
    server = ListingVllm(load_model(str(tiny_model), torch.float32), lambda token: spelling.decode([token]))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made = job(tmp_path, tiny_model, str(tiny_model), objective="top_k_reverse_kl", top_k=4, rollout_share=1.0)
    made["inference"] = {"base_url": server.base_url, "api_key": "${env:VLLM_KEY}"}
    made["models"] = {"student": str(tiny_model)}
    made["evaluation"] = {"enabled": False}
    monkeypatch.setenv("VLLM_KEY", "sk-vllm-test-key")
    code, out = run_here(write_config(tmp_path, made))
    server.shutdown()
    server.server_close()
    assert code == 0, out
    assert {asked["prompt_logprobs"] for asked in server.asked} == {4}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # The student equals its teacher.
    assert abs(next(line["loss"] for line in lines if line["stage"] == "train")) < 0.02


def test_more_tokens_than_there_are_is_all_of_them() -> None:
    for found in local(model(1)).lists(SEQUENCES[:2], 10 * VOCABULARY, StopSignal()):
        assert {len(others) for others in found.ids} == {VOCABULARY - 1}
