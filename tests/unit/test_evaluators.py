"""Metrics against hand calculations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from easydistill.config.evaluation import EvaluationConfig
from easydistill.contracts.loss import Outcomes
from easydistill.contracts.metric import TokenRows
from easydistill.evaluation.config import chosen_metrics
from easydistill.evaluation.metrics import METRICS
from easydistill.evaluation.metrics.acceptance import tokens_per_pass
from easydistill.evaluation.metrics.rouge_l import Metric as RougeL
from easydistill.evaluation.metrics.rouge_l import words
from easydistill.losses import LOSSES

TEACHER = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
STUDENT = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]])


def rows() -> TokenRows:
    place = torch.tensor([0, 0]), torch.tensor([5, 6]), torch.tensor([1, 2])
    return TokenRows(torch.tensor([0, 1]), STUDENT.log(), STUDENT.log(), TEACHER.log(), *place)


def test_all_metrics_are_found() -> None:
    always = {"agreement", "cross_entropy", "kl", "rouge_l"}
    assert set(METRICS.names()) == {*always, "acceptance", "exact_match", "image_gain"}
    # A text student's evaluation, and with it its fingerprint, stays what it was.
    assert set(chosen_metrics(EvaluationConfig())) == always
    assert set(chosen_metrics(EvaluationConfig(), sees_images=True)) == set(METRICS.names()) - {"acceptance"}


@pytest.mark.parametrize(
    ("answer", "same"), [("Blue", True), (" blue.\n", True), ("BLUE!", True), ("light blue", False), ("", False)]
)
def test_exact_match_compares_what_is_said(answer: str, same: bool) -> None:
    assert METRICS.module("exact_match").Metric().score(answer, "Blue.") == float(same)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", -(math.log(0.25) + math.log(0.7)) / 2),
        ("agreement", 0.5),
        ("acceptance", (0.25 + 0.25 + 0.25 + 0.1 + 0.7 + 0.1) / 2),
        (
            "kl",
            sum(
                float(t) * math.log(float(t) / float(s))
                for t, s in zip(TEACHER.flatten(), STUDENT.flatten(), strict=True)
            )
            / 2,
        ),
    ],
)
def test_token_metrics(name: str, expected: float) -> None:
    metric = METRICS.module(name).Metric()
    metric.update(rows())
    metric.update(rows())
    assert metric.value() == pytest.approx(expected, rel=1e-5)


def test_a_part_of_the_rows() -> None:
    part = rows().part(slice(1, 2))
    assert (part.target_N.tolist(), part.column_N.tolist(), part.position_N.tolist()) == ([1], [6], [2])
    assert part.teacher_logprobs_NV is not None
    assert torch.equal(part.teacher_logprobs_NV, TEACHER[1:].log())
    without = replace(rows(), teacher_logprobs_NV=None, shared_student_logprobs_NV=None).part(slice(0, 1))
    assert without.teacher_logprobs_NV is None and len(without.student_logprobs_NV) == 1


def test_rouge_l() -> None:
    score = RougeL().score
    assert score("the cat sat", "The cat sat!") == 1.0
    assert score("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert score("a b", "c d") == 0.0
    assert score("", "a") == 0.0
    assert score("今天天气很好", "今天天气不好") == pytest.approx(5 / 6)
    assert words("Café naïve 今天 2x") == ["café", "naïve", "今", "天", "2x"]


def test_acceptance_is_that_of_speculative_sampling() -> None:
    """Drafts are drawn from the student, and accepted as the algorithm says."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(STUDENT[0], 200_000, replacement=True, generator=generator)
    chance = (TEACHER[0][drawn] / STUDENT[0][drawn]).clamp(max=1)
    accepted = torch.rand(len(drawn), generator=generator) < chance
    metric = METRICS.module("acceptance").Metric()
    metric.update(rows().part(slice(0, 1)))
    assert metric.value() == pytest.approx(accepted.float().mean().item(), abs=0.005)


def test_acceptance_and_its_loss_are_sums_of_the_smaller_probabilities() -> None:
    """By a loop over positions and tokens, for distributions of every sharpness."""
    generator = torch.Generator().manual_seed(1)
    teacher_NV, student_NV = ((scale * torch.randn(40, 23, generator=generator)).softmax(-1) for scale in (3.0, 1.5))
    by_hand = [
        sum(min(float(p), float(q)) for p, q in zip(*pair, strict=True))
        for pair in zip(teacher_NV, student_NV, strict=True)
    ]
    part = replace(
        rows(),
        target_N=torch.zeros(40, dtype=torch.long),
        teacher_logprobs_NV=teacher_NV.log(),
        student_logprobs_NV=student_NV.log(),
        shared_student_logprobs_NV=student_NV.log(),
    )
    metric = METRICS.module("acceptance").Metric()
    for start in range(0, 40, 7):
        metric.update(part.part(slice(start, start + 7)))
    assert metric.value() == pytest.approx(sum(by_hand) / 40, rel=1e-5)
    loss = LOSSES.module("lk")
    found = loss.divergence(
        loss.Config(distillation_type="lk"), teacher_NV.log(), student_NV.log(), Outcomes(has_bucket=False)
    )
    assert found.exp().reciprocal().tolist() == pytest.approx(by_hand, rel=1e-5)
    total_variation = LOSSES.module("tvd")
    distance = total_variation.divergence(
        total_variation.Config(distillation_type="tvd"), teacher_NV.log(), student_NV.log(), Outcomes()
    )
    assert (1 - distance).tolist() == pytest.approx(by_hand, rel=1e-5)
    # What is accepted greedily: where both rank the same token first.
    top = METRICS.module("agreement").Metric()
    top.update(part)
    assert top.value() == pytest.approx((teacher_NV.argmax(-1) == student_NV.argmax(-1)).float().mean().item())


def test_what_a_student_drafts_outside_the_teachers_vocabulary_is_rejected() -> None:
    wide = torch.tensor([[0.2, 0.4, 0.2, 0.2]])
    part = replace(rows().part(slice(0, 1)), student_logprobs_NV=wide.log())
    metric = METRICS.module("acceptance").Metric()
    metric.update(part)
    assert metric.value() == pytest.approx(0.2 + 0.25 + 0.2)


def test_tokens_per_pass() -> None:
    assert tokens_per_pass(0.5, 3) == pytest.approx((1 - 0.5**4) / (1 - 0.5))
    assert (tokens_per_pass(0.0, 5), tokens_per_pass(1.0, 5)) == (1.0, 6.0)
