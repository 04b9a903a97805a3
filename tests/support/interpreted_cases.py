"""What only the interpreted kernels show; run by `tests/unit/test_triton_kernels.py` in a process with the plugin."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from easydistill.kernels import check, triton_kernels, triton_rows
from easydistill.kernels.devices import SWITCH
from easydistill.kernels.head_pass import HeadPass
from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.kernels.linear_distillation import linear_distillation
from easydistill.kernels.linear_logprobs import linear_logprobs
from easydistill.kernels.logprobs import target_logprobs
from easydistill.kernels.torch_rows import TorchRows
from easydistill.kernels.triton_rows import TritonRows
from easydistill.models.head import Head
from tests.unit.test_linear_distillation import Objective, divergence_of, gradients, problem, top_targets

EVERY = (True, True, True)


@pytest.fixture
def on_torch(monkeypatch: pytest.MonkeyPatch):
    """Calls a function with PyTorch's kernels."""

    def call(function):
        with monkeypatch.context() as patched:
            patched.setenv(SWITCH, "torch")
            return function()

    return call


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the vocabulary of the check."""
    for name in ("STATISTICS", "GRADIENT"):
        monkeypatch.setattr(triton_rows, name, triton_rows.Launch(1024, 1))


@pytest.mark.usefixtures("larger_blocks")
def test_the_check_of_a_device_passes_here():
    assert check.largest_error(torch.device("cpu")) < 5e-3


@pytest.mark.usefixtures("larger_blocks")
def test_the_check_of_a_device_sees_a_wrong_kernel(monkeypatch):
    right = TritonRows.at

    def wrong(self, ids_NC):
        found = right(self, ids_NC)
        self._lse_N += 0.05
        return found

    monkeypatch.setattr(TritonRows, "at", wrong)
    assert check.largest_error(torch.device("cpu")) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_rounded_once_like_the_reference(dtype):
    """Same products, same exact arithmetic: ∂z differs by no more than the last bit, which the interpreter cuts off."""
    hidden, weight = normal(0, 6, 8, dtype=dtype), normal(1, 70, 8, dtype=dtype)
    ids = torch.tensor([[3, 60, 11]] * 6)
    numbers = normal(2, 6, 5)
    found = []
    for raw, rows_of in ((False, TorchRows), (True, TritonRows)):
        head_pass = HeadPass(hidden, Head(weight), EVERY, 1 << 20, raw)
        (part,) = head_pass.slices()
        rows = rows_of(head_pass, part, 2.0, 66)
        rows.at(ids)
        rows.propagate(ids, numbers[:, 2:], numbers[:, :1], numbers[:, 1:2])
        found.append(part.logits_NV.clone())
    reference, ours = (each.view(torch.int16).int() for each in found)
    assert int((reference - ours).abs().max()) <= 1


@pytest.mark.parametrize("vocabulary", [1, 15, 16, 17, 63, 64, 65, 1000])
@pytest.mark.parametrize("real_share", [1.0, 0.6])
def test_vocabularies_of_any_size(vocabulary, real_share, on_torch):
    hidden, weight = normal(0, 3, 5, dtype=torch.float64), normal(1, vocabulary, 5, dtype=torch.float64)
    real = max(1, int(real_share * vocabulary))
    targets = top_targets(normal(2, 3, real, dtype=torch.float64).log_softmax(-1), min(4, real))
    target = torch.tensor([0, real - 1, real // 2])
    objective = Objective(divergence_of("jsd"), 0.5, 1.5, vocabulary=real)

    def run() -> list[Tensor]:
        leaves = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
        loss = linear_distillation(leaves[0], Head(leaves[1]), target, targets, objective).total
        return [loss.detach(), *gradients(loss, *leaves)]

    for ours, theirs in zip(run(), on_torch(run), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_that_a_head_excludes(temperature, on_torch):
    """A bias of −inf: such a token has no probability and no gradient, in blocks of them too."""
    hidden, head, target, teacher = problem(20)
    bias = head.bias_V.detach().clone()
    bias[16:31] = -torch.inf
    target = target % 16
    objective = Objective(divergence_of("forward_kld"), 0.5, temperature, "ignore")
    targets = top_targets(teacher[:, :16].log_softmax(-1), 4)

    def run() -> list[Tensor]:
        loss = linear_distillation(hidden, replace(head, bias_V=bias), target, targets, objective).total
        return [loss.detach(), *gradients(loss, hidden, head.weight_VD)]

    found = run()
    assert all(torch.isfinite(each).all() for each in found)
    for ours, theirs in zip(found, on_torch(run), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_logit_that_is_no_number_shows_in_the_loss():
    hidden = normal(0, 3, 5)
    hidden[1, 2] = torch.nan
    assert torch.isnan(linear_cross_entropy(hidden, Head(normal(1, 40, 5)), torch.zeros(3, dtype=torch.long)))


def test_rows_without_any_row():
    hidden, weight = torch.zeros(0, 5, requires_grad=True), normal(1, 40, 5).requires_grad_()
    loss = linear_cross_entropy(hidden, Head(weight), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not weight.grad.any()


def test_rows_beyond_two_to_the_31_values():
    """Only a few pages of this memory are ever touched."""
    stride, vocabulary = 2**30, 40
    products = torch.empty(4, stride, dtype=torch.bfloat16)[:, :vocabulary]
    products.copy_(normal(3, 4, vocabulary))
    ids = torch.tensor([[5, 39]] * 4)
    logits, statistics = torch.empty(4, 2), torch.empty(2, 4)
    constants = {"SCALE": 1.0, "CAP": 0.0, "PER_TEMPERATURE": 1.0, "HAS_BIAS": False, "PADDED": False}
    triton_kernels.statistics[(4,)](
        products,
        stride,
        None,
        ids,
        2,
        logits,
        *statistics,
        vocabulary,
        vocabulary,
        **constants,
        LISTED_BLOCK=2,
        BLOCK=16,
    )
    torch.testing.assert_close(statistics[0], products.float().logsumexp(-1))
    torch.testing.assert_close(logits, products.float().gather(1, ids))
    triton_kernels.overwrite[(4,)](products, stride, ids, logits + 1, 2, LISTED_BLOCK=2)
    torch.testing.assert_close(products.float().gather(1, ids), (logits + 1).bfloat16().float())


def test_one_slice_of_products_is_all_that_is_allocated():
    hidden, weight = normal(0, 20, 6), normal(1, 101, 6)
    head_pass = HeadPass(hidden, Head(weight), EVERY, 4 * 101 * 10, True)
    slices = [(len(part.logits_NV), part.logits_NV.untyped_storage().data_ptr()) for part in head_pass.slices()]
    assert [rows for rows, _ in slices] == [10, 10]
    assert len({memory for _, memory in slices}) == 1
    assert head_pass._buffers.keys() == {"products"}


@pytest.mark.parametrize("vocabulary", [None, 25])
@pytest.mark.parametrize(("scale", "softcap", "bias"), [(1.0, None, False), (0.5, 4.0, True)])
def test_log_probabilities_of_given_tokens(scale, softcap, bias, vocabulary):
    hidden, head, target, _ = problem(21, bias=bias, scale=scale, softcap=softcap)
    target = target % 25
    factors = normal(4, len(target), dtype=torch.float64)
    leaves = (hidden, head.weight_VD, head.bias_V)
    # The reference computes its softmax in float32.
    wanted = target_logprobs(hidden, head, target, False, vocabulary)[0]
    found = linear_logprobs(hidden, head, target, vocabulary, 31 * 8 * 3)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients((found * factors).sum(), *leaves), gradients((wanted * factors).sum(), *leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_log_probabilities_under_autocast_are_propagated_in_its_dtype():
    hidden, weight = normal(0, 9, 8).requires_grad_(), normal(1, 40, 8).requires_grad_()
    target = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_logprobs(hidden, Head(weight), target)
    found.sum().backward()
    exact = target_logprobs(hidden, Head(weight), target, False)[0]
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=5e-2)
    (wanted,) = gradients(exact.sum(), weight)
    assert weight.grad.dtype == torch.float32
    assert 1e-4 < float((weight.grad - wanted).norm() / wanted.norm()) < 2e-2
