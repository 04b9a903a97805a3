"""The fused distillation loss against plain autograd over the whole vocabulary, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from easydistill.contracts.loss import Outcomes
from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.kernels.linear_distillation import Objective, Targets, linear_distillation
from easydistill.losses import LOSSES
from easydistill.models.head import Head

ROWS, WIDTH, VOCABULARY = 23, 7, 31
BY_TOKEN = [name for name in LOSSES.names() if name != "uld"]
PARTIAL = ["forward_kld", "skewed_forward_kld", "tvd"]


def divergence_of(name: str, wrote_N: Tensor | None = None, **parameters):
    module = LOSSES.module(name)
    config = module.Config(distillation_type=name, **parameters)

    def divergence(teacher_NM, student_NM, has_bucket, rows):
        wrote = None if wrote_N is None else wrote_N[rows]
        return module.divergence(config, teacher_NM, student_NM, Outcomes(has_bucket, wrote))

    return divergence


def problem(seed: int = 0, *, bias: bool = True, scale: float = 1.0, softcap: float | None = None):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = normal(ROWS, WIDTH).requires_grad_()
    weight = normal(VOCABULARY, WIDTH).requires_grad_()
    head = Head(weight, normal(VOCABULARY).requires_grad_() if bias else None, scale, softcap)
    target = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    teacher = (2 * normal(ROWS, VOCABULARY)).log_softmax(-1)
    return hidden, head, target, teacher


def top_targets(teacher_NV: Tensor, k: int) -> Targets:
    values, ids = teacher_NV.topk(k)
    rest = (1 - values.exp().sum(-1)).clamp_min(0).log() if k < teacher_NV.shape[1] else values[:, 0] * 0 - torch.inf
    every = torch.ones(len(ids), dtype=torch.bool)
    return Targets(ids, values, rest, torch.zeros(len(ids)), every, every)


def reference(hidden, head, target, teacher_NV, targets, objective) -> Tensor:
    """The same loss by autograd, with all logits and the tail as a log-sum-exp of what is not listed."""
    logits = head.logits(hidden)
    cross_entropy = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    student = (logits / objective.temperature).log_softmax(-1)
    rows = slice(0, len(target))
    if targets is None:
        value = objective.divergence(teacher_NV, student, False, rows)
    else:
        listed = student.gather(1, targets.ids_NM)
        teacher = targets.logweights_NM
        if objective.tail == "bucket":
            unlisted = student.scatter(1, targets.ids_NM, -torch.inf)
            empty = torch.isinf(unlisted).all(-1, keepdim=True)
            tail = torch.where(
                empty, unlisted.new_tensor(1e-15).log(), unlisted.masked_fill(empty, 0).logsumexp(-1, True)
            )
            value = objective.divergence(
                torch.cat([teacher, targets.log_rest_N[:, None]], 1), torch.cat([listed, tail], 1), True, rows
            )
        else:
            if objective.tail == "renormalise_teacher":
                teacher = teacher - teacher.logsumexp(-1, keepdim=True)
            value = objective.divergence(teacher, listed, False, rows)
        value = value * targets.present_N
    return (1 - objective.kd_ratio) * cross_entropy + objective.kd_ratio * objective.temperature**2 * value.sum()


def gradients(loss: Tensor, *of: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [tensor for tensor in of if tensor is not None]))


def assert_equal_to_reference(hidden, head, target, teacher_NV, targets, objective, chunk_bytes=1 << 20) -> None:
    wanted = reference(hidden, head, target, teacher_NV, targets, objective)
    given = targets if targets is not None else (lambda rows: teacher_NV[rows])
    found = linear_distillation(hidden, head, target, given, objective, chunk_bytes)
    torch.testing.assert_close(found.total, wanted, rtol=1e-10, atol=1e-10)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(found.total, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("name", BY_TOKEN)
def test_listed_tokens_with_a_bucket(name, k, temperature):
    hidden, head, target, teacher = problem()
    objective = Objective(divergence_of(name), kd_ratio=0.6, temperature=temperature)
    assert_equal_to_reference(hidden, head, target, teacher, top_targets(teacher, k), objective)


@pytest.mark.parametrize("tail", ["ignore", "renormalise_teacher"])
@pytest.mark.parametrize("name", PARTIAL)
def test_listed_tokens_without_a_bucket(name, tail):
    hidden, head, target, teacher = problem(1)
    objective = Objective(divergence_of(name, tail=tail), kd_ratio=0.6, tail=tail)
    assert_equal_to_reference(hidden, head, target, teacher, top_targets(teacher, 6), objective)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", BY_TOKEN)
def test_the_whole_distribution(name, temperature):
    hidden, head, target, teacher = problem(2)
    objective = Objective(divergence_of(name), kd_ratio=0.6, temperature=temperature)
    assert_equal_to_reference(hidden, head, target, teacher, None, objective)


@pytest.mark.parametrize("name", BY_TOKEN)
def test_listing_every_token_is_the_whole_distribution(name):
    hidden, head, target, teacher = problem(3)
    objective = Objective(divergence_of(name), kd_ratio=0.9)
    whole = linear_distillation(hidden, head, target, lambda rows: teacher[rows], objective)
    listed = linear_distillation(hidden, head, target, top_targets(teacher, VOCABULARY), objective)
    torch.testing.assert_close(listed.total, whole.total, rtol=1e-9, atol=1e-9)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(listed.total, *leaves), gradients(whole.total, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("scale", "softcap", "bias"), [(0.3, None, False), (1.0, 5.0, True), (2.0, 4.0, False)])
def test_scaled_and_capped_heads(scale, softcap, bias):
    hidden, head, target, teacher = problem(4, bias=bias, scale=scale, softcap=softcap)
    objective = Objective(divergence_of("jsd", beta=0.3), kd_ratio=0.5)
    assert_equal_to_reference(hidden, head, target, teacher, top_targets(teacher, 5), objective)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", BY_TOKEN)
def test_slicing_changes_nothing(name, whole):
    hidden, head, target, teacher = problem(5)
    wrote = torch.arange(ROWS) % 2 == 0
    objective = Objective(divergence_of(name, wrote), kd_ratio=0.4, temperature=1.5)
    given = (lambda rows: teacher[rows]) if whole else top_targets(teacher, 4)
    leaves = (hidden, head.weight_VD, head.bias_V)
    one = linear_distillation(hidden, head, target, given, objective, chunk_bytes=1 << 20)
    many = linear_distillation(hidden, head, target, given, objective, chunk_bytes=4 * VOCABULARY * 4)
    torch.testing.assert_close(many.total, one.total)
    for ours, theirs in zip(gradients(many.total, *leaves), gradients(one.total, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [name for name in (*BY_TOKEN, "uld") if name != "adaptive_kld"])
def test_finite_differences(name):
    # adaptive_kld has no gradient through its weight, which a finite difference would include.
    hidden, head, target, teacher = problem(6)
    objective = Objective(divergence_of(name), 0.7, 1.3, "ignore" if name == "uld" else "bucket", name == "uld")
    targets = top_targets(teacher, 4)

    def loss(hidden, weight, bias):
        return linear_distillation(hidden, Head(weight, bias), target, targets, objective).total

    leaves = (hidden, head.weight_VD, head.bias_V)
    ours = gradients(loss(*leaves), *leaves)
    generator = torch.Generator().manual_seed(0)
    for index, leaf in enumerate(leaves):
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1e-6, -1e-6):
            moved = [each.detach() + (sign * direction if at == index else 0) for at, each in enumerate(leaves)]
            # Without gradients the pass computes only the value, which must be the same.
            ends.append(loss(*moved))
        numeric = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close((ours[index] * direction).sum(), numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [3, VOCABULARY])
@pytest.mark.parametrize("name", BY_TOKEN)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name, k):
    hidden, head, target, _ = problem(7)
    teacher = head.logits(hidden).detach().log_softmax(-1)
    objective = Objective(divergence_of(name), kd_ratio=1.0)
    found = linear_distillation(hidden, head, target, top_targets(teacher, k), objective)
    assert abs(float(found.divergence)) < 1e-9
    if name not in ("tvd", "lk"):  # whose gradients take the smaller of two probabilities
        for gradient in gradients(found.total, hidden, head.weight_VD, head.bias_V):
            assert float(gradient.abs().max()) < 1e-7


def test_without_divergence_it_is_cross_entropy():
    hidden, head, target, teacher = problem(8)
    found = linear_distillation(
        hidden, head, target, top_targets(teacher, 4), Objective(divergence_of("forward_kld"), kd_ratio=0.0)
    )
    wanted = linear_cross_entropy(hidden, head, target)
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(found.cross_entropy, wanted)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(found.total, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_unused_places_change_nothing(temperature):
    hidden, head, target, teacher = problem(9)
    objective = Objective(divergence_of("reverse_kld"), kd_ratio=0.5, temperature=temperature)
    targets = top_targets(teacher, 4)
    wide = replace(
        targets,
        ids_NM=torch.cat([targets.ids_NM, targets.ids_NM[:, :1].expand(-1, 3)], 1),
        logweights_NM=torch.cat([targets.logweights_NM, torch.full((ROWS, 3), -torch.inf, dtype=torch.float64)], 1),
    )
    narrow_loss = linear_distillation(hidden, head, target, targets, objective)
    wide_loss = linear_distillation(hidden, head, target, wide, objective)
    torch.testing.assert_close(wide_loss.total, narrow_loss.total)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(wide_loss.total, *leaves), gradients(narrow_loss.total, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tail", ["bucket", "ignore", "renormalise_teacher"])
def test_rows_without_a_signal_learn_from_their_labels_alone(tail):
    hidden, head, target, teacher = problem(10)
    objective = Objective(divergence_of("forward_kld", tail=tail), kd_ratio=0.5, tail=tail)
    present = torch.arange(ROWS) % 3 != 0
    targets = top_targets(teacher, 4)
    blank = replace(
        targets,
        ids_NM=targets.ids_NM.masked_fill(~present[:, None], 0),
        logweights_NM=targets.logweights_NM.masked_fill(~present[:, None], -torch.inf),
        log_rest_N=targets.log_rest_N.masked_fill(~present, 0.0),
        present_N=present,
    )
    wanted = reference(hidden, head, target, teacher, replace(targets, present_N=present), objective)
    found = linear_distillation(hidden, head, target, blank, objective)
    torch.testing.assert_close(found.total, wanted)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(found.total, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", BY_TOKEN)
def test_padding_of_the_vocabulary_changes_nothing(name, temperature):
    hidden, head, target, teacher = problem(11)
    generator = torch.Generator().manual_seed(1)
    extra = torch.randn(6, WIDTH, generator=generator, dtype=torch.float64)
    padded = Head(torch.cat([head.weight_VD, extra]), torch.cat([head.bias_V, torch.full((6,), 3.0)]))
    objective = Objective(divergence_of(name), kd_ratio=1.0, temperature=temperature)
    plain = linear_distillation(hidden, head, target, top_targets(teacher, 5), objective)
    wide = linear_distillation(
        hidden, padded, target, top_targets(teacher, 5), replace(objective, vocabulary=VOCABULARY)
    )
    torch.testing.assert_close(wide.total, plain.total)
    for ours, theirs in zip(
        gradients(wide.total, hidden, head.weight_VD), gradients(plain.total, hidden, head.weight_VD), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("whole", [False, True])
def test_cross_entropy_pushes_padding_down_and_the_divergence_ignores_it(whole, temperature):
    hidden, head, target, teacher = problem(16)
    real = 25
    target = target % real
    teacher = teacher[:, :real].log_softmax(-1)
    targets = top_targets(teacher, 5)
    objective = Objective(divergence_of("jsd"), kd_ratio=0.5, temperature=temperature, vocabulary=real)
    logits = head.logits(hidden)
    cross_entropy = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    student = Head(head.weight_VD[:real], head.bias_V[:real])
    only = replace(objective, kd_ratio=1.0)
    wanted = 0.5 * cross_entropy + 0.5 * reference(hidden, student, target, teacher, None if whole else targets, only)
    given = (lambda rows: teacher[rows]) if whole else targets
    found = linear_distillation(hidden, head, target, given, objective)
    torch.testing.assert_close(found.total, wanted)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(found.total, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_labels_that_are_not_learned_leave_the_divergence_alone():
    hidden, head, target, teacher = problem(17)
    objective = Objective(divergence_of("forward_kld"), kd_ratio=0.5)
    labelled = torch.arange(ROWS) % 2 == 0
    targets = top_targets(teacher, 5)
    logits = head.logits(hidden)
    cross_entropy = (torch.nn.functional.cross_entropy(logits, target, reduction="none") * labelled).sum()
    wanted = 0.5 * cross_entropy + 0.5 * reference(
        hidden, head, target, teacher, targets, replace(objective, kd_ratio=1.0)
    )
    found = linear_distillation(hidden, head, target, replace(targets, labelled_N=labelled), objective)
    torch.testing.assert_close(found.total, wanted)
    leaves = (hidden, head.weight_VD, head.bias_V)
    for ours, theirs in zip(gradients(found.total, *leaves), gradients(wanted, *leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_head_costs_no_weight_gradient():
    hidden, head, target, teacher = problem(12)
    frozen = Head(head.weight_VD.detach(), head.bias_V.detach())
    found = linear_distillation(hidden, frozen, target, top_targets(teacher, 5), Objective(divergence_of("jsd"), 0.5))
    found.total.backward()
    assert hidden.grad is not None
    assert frozen.weight_VD.grad is None


def test_the_students_own_answers_take_the_other_divergence():
    hidden, head, target, teacher = problem(13)
    targets = top_targets(teacher, 5)
    wrote = torch.arange(ROWS) % 2 == 0
    parts = {
        name: linear_distillation(
            hidden, head, target, replace(targets, present_N=rows), Objective(divergence_of(name), kd_ratio=1.0)
        ).divergence
        for name, rows in (("skewed_reverse_kld", wrote), ("skewed_forward_kld", ~wrote))
    }
    found = linear_distillation(hidden, head, target, targets, Objective(divergence_of("contrastive", wrote), 1.0))
    torch.testing.assert_close(found.divergence, sum(parts.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_close(dtype):
    hidden, head, target, teacher = problem(14)
    objective = Objective(divergence_of("forward_kld"), kd_ratio=0.5)
    wanted = reference(hidden, head, target, teacher, top_targets(teacher, 5), objective)
    low = hidden.detach().to(dtype).requires_grad_()
    low_head = Head(head.weight_VD.detach().to(dtype).requires_grad_(), head.bias_V.detach().to(dtype))
    found = linear_distillation(low, low_head, target, top_targets(teacher.float(), 5), objective)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.total.double(), wanted, rtol=tolerance, atol=tolerance)
    (ours,) = gradients(found.total, low)
    (theirs,) = gradients(wanted, hidden)
    assert float((ours.double() - theirs).norm() / theirs.norm()) < tolerance


def test_a_student_all_of_whose_mass_is_listed_has_a_finite_gradient():
    hidden, head, target, _ = problem(15)
    sure = Head(40 * head.weight_VD.detach(), None)
    targets = top_targets(sure.logits(hidden).detach().log_softmax(-1), 3)
    targets = replace(targets, log_rest_N=torch.full_like(targets.log_rest_N, -1.0))
    for dtype in (torch.float32, torch.float64):
        low = hidden.detach().to(dtype).requires_grad_()
        found = linear_distillation(
            low, Head(sure.weight_VD.to(dtype)), target, targets, Objective(divergence_of("forward_kld"), 1.0)
        )
        (gradient,) = gradients(found.total, low)
        assert torch.isfinite(found.total)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, "forward_kld"), (1 - 1e-4, "reverse_kld")])
def test_the_scaled_divergence_ends_in_kl(beta, limit):
    """Unscaled it vanishes there: it is β, or 1 − β, times the KL."""
    teacher, student = (torch.randn(6, 9, generator=torch.Generator().manual_seed(n)).double() for n in (1, 2))
    given = teacher.log_softmax(-1), student.log_softmax(-1), True, slice(None)
    wanted = divergence_of(limit)(*given)
    torch.testing.assert_close(divergence_of("jsd", beta=beta, scaled=True)(*given), wanted, rtol=1e-2, atol=1e-3)
    small = min(beta, 1 - beta)
    torch.testing.assert_close(divergence_of("jsd", beta=beta)(*given) / small, wanted, rtol=1e-2, atol=1e-3)
    middle = [divergence_of("jsd", beta=0.5, scaled=scaled)(*given) for scaled in (True, False)]
    torch.testing.assert_close(middle[0], 4 * middle[1])
