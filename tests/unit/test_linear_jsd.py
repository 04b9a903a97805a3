"""The fused divergence of two models' whole distributions against plain autograd, in float64, and against TRL's."""

from __future__ import annotations

import math

import pytest
import torch

from easydistill.kernels.linear_jsd import Divergence, linear_generalized_jsd
from easydistill.models.head import Head

ROWS, VOCABULARY = 23, 31
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def problem(seed: int = 0, *, bias: bool = True, scale: float = 1.0, softcap: float | None = None, extra: int = 0):
    """(hidden states, head) of a student and of a teacher with another width and another size of its head."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = normal(VOCABULARY, 7).requires_grad_()
    head = Head(weight, normal(VOCABULARY).requires_grad_() if bias else None, scale, softcap)
    teacher = Head(normal(VOCABULARY + extra, 11), normal(VOCABULARY + extra), 0.5, 9.0)
    return normal(ROWS, 7).requires_grad_(), head, normal(ROWS, 11), teacher


def reference(student, head, teacher, teacher_head, beta, temperature=1.0, real=VOCABULARY):
    """(divergence, reverse KL, entropy) of each row by autograd over whole distributions."""
    s = (head.logits(student)[:, :real] / temperature).log_softmax(-1)
    t = (teacher_head.logits(teacher)[:, :real] / temperature).log_softmax(-1).detach()

    def kl(first, second):
        return (first.exp() * (first - second)).sum(-1)

    if beta in (0, 1):
        divergence = kl(t, s) if beta == 0 else kl(s, t)
    else:
        m = torch.logaddexp(t + math.log(beta), s + math.log(1 - beta))
        divergence = beta * kl(t, m) + (1 - beta) * kl(s, m)
    return divergence, kl(s, t), -(s.exp() * s).sum(-1)


def gradients(total, hidden, head):
    inputs = [hidden, head.weight_VD, *([head.bias_V] if head.bias_V is not None else [])]
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(
    "shape",
    [{}, {"bias": False}, {"scale": 0.3, "softcap": 3.0}, {"extra": 5}],
    ids=["plain", "no bias", "cap", "wide"],
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_values_and_gradients_are_those_of_autograd(beta, shape, temperature):
    student, head, teacher, teacher_head = problem(**shape)
    wanted = reference(student, head, teacher, teacher_head, beta, temperature)
    found = linear_generalized_jsd(
        student, head, teacher, teacher_head, beta, temperature=temperature, chunk_bytes=5 * 4 * VOCABULARY
    )
    for ours, theirs in zip((found.divergence_N, found.reverse_kl_N, found.entropy_N), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.total, wanted[0].sum(), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(
        gradients(3 * found.total, student, head), gradients(3 * wanted[0].sum(), student, head), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_padding_of_the_head_gets_no_gradient(beta):
    student, head, teacher, teacher_head = problem()
    wanted = reference(student, head, teacher, teacher_head, beta, real=29)
    found = linear_generalized_jsd(student, head, teacher, teacher_head, beta, vocabulary=29)
    made = gradients(found.total, student, head)
    for ours, theirs in zip(made, gradients(wanted[0].sum(), student, head), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
    assert not made[1][29:].any() and not made[2][29:].any()


@pytest.mark.parametrize("beta", BETAS)
def test_distributions_that_are_nearly_certain(beta):
    student, head, teacher, teacher_head = problem()
    weight, hidden = teacher_head.weight_VD.float(), (400 * teacher).float()
    found = linear_generalized_jsd(300 * student.float(), Head(head.weight_VD.float()), hidden, Head(weight), beta)
    (gradient,) = torch.autograd.grad(found.total, student)
    assert found.total.isfinite() and gradient.isfinite().all()
    wanted, _, _ = reference(300 * student, Head(head.weight_VD), 400 * teacher, Head(teacher_head.weight_VD), beta)
    torch.testing.assert_close(found.divergence_N.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_it_is_trl_s_loss(beta):
    trl = pytest.importorskip("trl.trainer.distillation_trainer")
    student, head, teacher, teacher_head = problem()
    single = [value.float() for value in (student, head.weight_VD, head.bias_V, teacher)]
    ours = linear_generalized_jsd(
        single[0],
        Head(single[1], single[2]),
        single[3],
        Head(teacher_head.weight_VD.float(), teacher_head.bias_V.float()),
        beta,
        temperature=1.5,
    )
    theirs, _, count = trl._chunked_divergence_loss(
        single[0][None],
        single[3][None],
        single[1],
        teacher_head.weight_VD.float(),
        torch.ones(1, ROWS),
        beta,
        num_items_in_batch=1,
        student_lm_head_bias=single[2],
        teacher_lm_head_bias=teacher_head.bias_V.float(),
        temperature=1.5,
    )
    assert int(count) == ROWS
    torch.testing.assert_close(ours.total, theirs, rtol=1e-4, atol=1e-5)


def test_no_rows_have_no_loss():
    student, head, teacher, teacher_head = problem()
    found = linear_generalized_jsd(student[:0], head, teacher[:0], teacher_head, 0.5)
    found.total.backward()
    assert found.total == 0 and found.entropy_N.shape == (0,) and not head.weight_VD.grad.any()


def test_without_gradients_nothing_is_propagated():
    student, head, teacher, teacher_head = problem()
    with torch.no_grad():
        found = linear_generalized_jsd(student, head, teacher, teacher_head, 0.5)
    assert not found.total.requires_grad
    assert torch.equal(found.total, linear_generalized_jsd(student, head, teacher, teacher_head, 0.5).total)


def mixture(student, head, teacher, teacher_head, share, temperature=1.0):
    """α KL(p_T ‖ p_S) + (1−α) KL(p_S ‖ p_T) of each row by autograd."""
    forward, backward = (reference(student, head, teacher, teacher_head, beta, temperature)[0] for beta in (0.0, 1.0))
    return share * forward + (1 - share) * backward


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [{}, {"scale": 0.3, "softcap": 3.0}, {"extra": 5}], ids=["plain", "cap", "wide"])
def test_a_mixture_of_both_kls(share, shape):
    student, head, teacher, teacher_head = problem(**shape)
    wanted = mixture(student, head, teacher, teacher_head, share, 2.0)
    spans = [(ROWS, Divergence(forward_share=share))]
    found = linear_generalized_jsd(student, head, teacher, teacher_head, spans, temperature=2.0, chunk_bytes=2000)
    torch.testing.assert_close(found.divergence_N, wanted, rtol=1e-9, atol=1e-12)
    pairs = zip(gradients(found.total, student, head), gradients(wanted.sum(), student, head), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rows_of_a_slice", [2, 5, 100])
def test_rows_may_differ_in_their_divergence(rows_of_a_slice):
    student, head, teacher, teacher_head = problem()
    kinds = [Divergence(0.0), Divergence(1.0), Divergence(0.5), Divergence(forward_share=0.4), Divergence(0.0)]
    spans = [(4, kinds[0]), (0, kinds[2]), (7, kinds[1]), (1, kinds[2]), (8, kinds[3]), (3, kinds[4])]
    parts = [
        reference(student, head, teacher, teacher_head, kind.beta)[0]
        if kind.forward_share is None
        else mixture(student, head, teacher, teacher_head, kind.forward_share)
        for _, kind in spans
    ]
    wanted, at = [], 0
    for (count, _), part in zip(spans, parts, strict=True):
        wanted.append(part[at : at + count])
        at += count
    wanted_N = torch.cat(wanted)
    chunk = rows_of_a_slice * 4 * VOCABULARY
    found = linear_generalized_jsd(student, head, teacher, teacher_head, spans, chunk_bytes=chunk)
    torch.testing.assert_close(found.divergence_N, wanted_N, rtol=1e-9, atol=1e-12)
    kl = reference(student, head, teacher, teacher_head, 1.0)
    torch.testing.assert_close(found.reverse_kl_N, kl[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.entropy_N, kl[2], rtol=1e-9, atol=1e-12)
    pairs = zip(gradients(found.total, student, head), gradients(wanted_N.sum(), student, head), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_every_row_needs_a_divergence():
    student, head, teacher, teacher_head = problem()
    with pytest.raises(AssertionError, match="one divergence"):
        linear_generalized_jsd(student, head, teacher, teacher_head, [(ROWS - 1, Divergence())])
