"""What changes over the steps of on-policy distillation, on tiny real models: by plain formulas, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_on_policy_kd import (
    assert_same_bits,
    config,
    job,
    model,
    prompts,
    student,
    train,
    weights,
)
from tests.support.jobs import run_here, write_config
from tests.support.killed import Killed
from transformers import AutoTokenizer

from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError
from easydistill.methods.on_policy import trainer as on_policy
from easydistill.methods.on_policy.alarms import WEAK_ENTROPY
from easydistill.methods.shared.rollouts import PromptRow, Written, roll_out
from easydistill.models.decoding import packed

JSD = "generalized_jsd"


@pytest.fixture(scope="session")
def tokenizer(smollm: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm)


class Listening(Reporter):
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        super().__init__(self.path, quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def logged(self, stage: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in lines if line["stage"] == stage]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Written]]:
    """What each step learns, in their order."""
    found: list[list[Written]] = []
    update = on_policy.SampledTraining.update

    def watched(self: Any, batch: list[Written]) -> dict[str, float]:
        found.append(list(batch))
        return update(self, batch)

    monkeypatch.setattr(on_policy.SampledTraining, "update", watched)
    return found


def divergence(own: Any, teacher: Any, item: Written, beta: float | None, mix: float | None = None) -> float:
    """Over a sequence's completion, by whole logits: forward KL, reverse KL, JSD at 0.5, or a mixture of the KLs."""
    with torch.no_grad():
        s, t = (
            who(torch.tensor([item.ids])).logits[0, len(item.prompt) - 1 : -1].log_softmax(-1) for who in (own, teacher)
        )

    def kl(first: torch.Tensor, second: torch.Tensor) -> float:
        return float((first.exp() * (first - second)).sum())

    if mix is not None:
        return mix * kl(t, s) + (1 - mix) * kl(s, t)
    m = ((s.exp() + t.exp()) / 2).log()
    return {0.0: kl(t, s), 1.0: kl(s, t), 0.5: (kl(t, m) + kl(s, m)) / 2}[beta or 0.0]


@pytest.mark.parametrize(
    ("settings", "own", "answers"),
    [
        ({"beta": 1.0, "beta_answers": 0.0}, (1.0, None), (0.0, None)),
        ({"beta": 0.5, "beta_answers": 1.0}, (0.5, None), (1.0, None)),
        ({"kl_mix": 0.3, "beta_answers": 0.0}, (None, 0.3), (0.0, None)),
        ({"kl_mix": 0.3}, (None, 0.3), (None, 0.3)),
    ],
    ids=str,
)
def test_own_text_and_the_teachers_may_differ_in_their_divergence(
    settings: dict[str, Any], own: Any, answers: Any, batches: list[list[Written]], tokenizer: Any, tmp_path: Path
) -> None:
    trained, teacher, before = student(tokenizer), model(1), model(0)
    outcome = train(JSD, trained, teacher, prompts(8), tmp_path, config(max_steps=1), **settings)
    assert {item.rolled for item in batches[0]} == {True, False}
    expected = [divergence(before, teacher, item, *(own if item.rolled else answers)) for item in batches[0]]
    assert outcome.final_loss == pytest.approx(
        sum(expected) / sum(len(item.completion) for item in batches[0]), rel=1e-4
    )


def test_the_start_is_distillation_on_the_teachers_answers(
    batches: list[list[Written]], tokenizer: Any, tmp_path: Path
) -> None:
    """It ends where a training without rollouts by forward KL does, bit for bit; then rollouts begin."""
    teacher, rows, told = model(1), prompts(10), Listening(tmp_path)
    settings = {"beta": 0.5, "rollout_share": 1.0, "steps_per_rollout": 2}
    train(JSD, student(tokenizer), teacher, rows, tmp_path / "a", config(), None, told, kd_steps=3, **settings)
    assert [sum(item.rolled for item in batch) for batch in batches] == [0, 0, 0, 4, 4, 4]
    losses = [line["loss"] for line in told.logged("train")]
    assert [line["step"] for line in told.logged("rollouts")] == [4, 5, 6]
    apart = Listening(tmp_path / "b")
    train(JSD, student(tokenizer), teacher, rows, tmp_path / "c", config(max_steps=3), None, apart,
          beta=0.0, rollout_share=0.0)  # fmt: skip
    assert losses[:3] == [line["loss"] for line in apart.logged("train")]


def test_a_start_of_all_steps_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"6 steps come before rollouts, and the training has 6"):
        train(JSD, student(tokenizer), model(1), prompts(4), tmp_path, kd_steps=6)


def test_answers_may_be_longer_from_round_to_round(
    batches: list[list[Written]], tokenizer: Any, tmp_path: Path
) -> None:
    told = Listening(tmp_path)
    curriculum = {"max_new_tokens": 12, "max_new_tokens_start": 2, "max_new_tokens_growth": 0.5}
    settings = {"beta": 0.0, "rollout_share": 1.0, **curriculum}
    train(JSD, student(tokenizer), model(1), prompts(10), tmp_path, config(max_steps=8), None, told, **settings)
    limits = [2, 4, 7, 9, 12, 12, 12, 12]
    assert [line["length_limit"] for line in told.logged("rollouts")] == limits
    assert [max(len(item.completion) for item in batch) for batch in batches] == limits
    # What is cut ends with the token that was drawn, and is as long as it may be.
    cut = [(item, limit) for batch, limit in zip(batches, limits, strict=True) for item in batch if not item.ended]
    assert cut
    assert all(len(item.completion) == limit and item.completion[-1] != 2 for item, limit in cut)


@pytest.mark.parametrize(("peaked", "beta"), [(0.5, 0.0), (12.0, 0.5)], ids=["flat", "peaked"])
def test_the_divergence_suits_the_student(
    peaked: float, beta: float, batches: list[list[Written]], tokenizer: Any, tmp_path: Path
) -> None:
    """A student of next to no certainty gets forward KL. The loss of the first step is by the choice already."""
    trained, teacher, told = student(tokenizer, peaked=peaked), model(1), Listening(tmp_path)
    rows = [PromptRow(row.id, row.prompt) for row in prompts(10)]
    outcome = train(JSD, trained, teacher, rows, tmp_path, config(max_steps=1), None, told, rollout_share=1.0)
    first = told.logged("rollouts")[0]
    assert (first["entropy"] > WEAK_ENTROPY) == (beta == 0.0)
    assert outcome.fit["beta"] == beta
    assert f"{first['entropy']:.1f} nats" in outcome.fit["told"]
    assert [line for line in told.said if f"on_policy.beta = {beta}, {outcome.fit['told']}" in line]
    total = sum(divergence(model(0, peaked=peaked), teacher, item, beta) for item in batches[0])
    assert outcome.final_loss == pytest.approx(total / sum(len(item.completion) for item in batches[0]), rel=1e-4)


def test_a_given_beta_is_not_questioned(tokenizer: Any, tmp_path: Path) -> None:
    told = Listening(tmp_path)
    outcome = train(JSD, student(tokenizer, peaked=0.5), model(1), prompts(8), tmp_path, config(max_steps=1), None,
                    told, beta=0.5)  # fmt: skip
    assert not outcome.fit
    assert not [line for line in told.said if "on_policy.beta =" in line]


EVERYTHING = {"kd_steps": 2, "max_new_tokens_start": 3, "beta_answers": 0.0, "steps_per_rollout": 3}


@pytest.mark.parametrize("die_at", [2, 4, 6, 8])
def test_a_killed_training_goes_on_as_it_was_decided(
    die_at: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the start, right after the choice, and later: weights, figures and the choice are the same."""
    teacher, rows, training = model(1), prompts(10), config(max_steps=9)
    whole, resumed = student(tokenizer, peaked=0.5), student(tokenizer, peaked=0.5)
    expected = train(JSD, whole, teacher, rows, tmp_path / "whole", training, **EVERYTHING)
    assert expected.fit["beta"] == 0.0
    update, count = on_policy.SampledTraining.update, 0

    def dying(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == die_at:
            raise Killed
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(on_policy.SampledTraining, "update", dying)
        with pytest.raises(Killed):
            train(JSD, student(tokenizer, peaked=0.5), teacher, rows, tmp_path / "killed", training, **EVERYTHING)
    found = train(JSD, resumed, teacher, rows, tmp_path / "killed", training, **EVERYTHING)
    assert found.resumed_from_step == (die_at - 1) // 2 * 2
    assert_same_bits(weights(whole), weights(resumed))
    assert (found.fit, found.final_loss) == (expected.fit, expected.final_loss)


def test_the_report_says_why(tiny_model: Path, tmp_path: Path) -> None:
    section = {"kd_steps": 1, "max_new_tokens_start": 4}
    code, out = run_here(write_config(tmp_path, job(tmp_path, tiny_model, str(tiny_model), **section)))
    assert code == 0, out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    fit = summary["stages"]["train"]["metrics"]["fit"]
    assert f"on_policy.beta = {fit['beta']}, {fit['told']}" in out
    for name in ("report.md", "report.html"):
        text = (tmp_path / "run" / name).read_text().replace("\\_", "_")
        assert f"on_policy.beta is {fit['beta']:g}" in text
        assert "Longest answer allowed" in text


@pytest.mark.skipif(not packed._available(), reason="this processor has no products in bfloat16")
def test_answers_are_the_same_with_weights_laid_out_for_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    own, asked, laid_out = model(3), [(row.id, row.prompt) for row in prompts(12)], []
    lay_out = packed._packed
    monkeypatch.setattr(packed, "_packed", lambda layer: laid_out.append(layer) or lay_out(layer))

    def written(limit: int) -> list[Written]:
        with torch.autocast("cpu", torch.bfloat16):
            return roll_out(own, asked, 0, frozenset({2}), limit, 1.0, seed=1)

    found = written(packed.WORTH)
    assert len(laid_out) == 15
    monkeypatch.setattr(packed, "_available", lambda: False)
    assert written(packed.WORTH) == found
    assert len(laid_out) == 15
