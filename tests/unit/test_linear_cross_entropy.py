"""The fused loss equals the plain one, in value and in every gradient, however it is sliced."""

from __future__ import annotations

import pytest
import torch

from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.models.head import Head, rows_per_chunk

N, D, V = 37, 16, 101


def _inputs(dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden_ND = torch.randn(N, D, generator=generator, dtype=dtype, requires_grad=True)
    weight_VD = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    bias_V = torch.randn(V, generator=generator, dtype=dtype, requires_grad=True) if bias else None
    return hidden_ND, weight_VD, bias_V, torch.randint(V, (N,), generator=generator)


def _plain(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, target_N: torch.Tensor, **kind: float
) -> torch.Tensor:
    logits_NV = hidden_ND @ weight_VD.T
    if bias_V is not None:
        logits_NV = logits_NV + bias_V
    logits_NV = logits_NV * kind.get("scale", 1.0)
    if "softcap" in kind:
        logits_NV = torch.tanh(logits_NV / kind["softcap"]) * kind["softcap"]
    return torch.nn.functional.cross_entropy(logits_NV.double(), target_N, reduction="sum")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [{}, {"scale": 0.5}, {"softcap": 3.0}, {"scale": 2.0, "softcap": 5.0}], ids=str)
@pytest.mark.parametrize("chunk_bytes", [4 * V, 4 * V * 5, 1 << 20])
def test_value_and_gradients_equal_the_plain_loss(bias: bool, kind: dict[str, float], chunk_bytes: int) -> None:
    inputs = _inputs(torch.float64, bias)
    expected = _plain(*inputs, **kind)
    wanted = [item for item in inputs[:3] if item is not None]
    expected_gradients = torch.autograd.grad(expected, wanted)

    hidden_ND, weight_VD, bias_V, target_N = inputs
    head = Head(weight_VD, bias_V, kind.get("scale", 1.0), kind.get("softcap"))
    loss = linear_cross_entropy(hidden_ND, head, target_N, chunk_bytes)
    # Through a factor, so that the upstream gradient matters.
    gradients = torch.autograd.grad(loss * 0.37, wanted)

    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs * 0.37)


def test_gradients_by_finite_differences() -> None:
    hidden_ND, weight_VD, bias_V, target_N = _inputs(torch.float64, bias=True)
    assert bias_V is not None

    def loss() -> torch.Tensor:
        return linear_cross_entropy(hidden_ND, Head(weight_VD, bias_V, 1.5, 4.0), target_N, 4 * V * 6)

    loss().backward()
    step = 1e-6
    for tensor in (hidden_ND, weight_VD, bias_V):
        assert tensor.grad is not None
        flat, gradient = tensor.detach().view(-1), tensor.grad.view(-1)
        for index in range(0, flat.numel(), max(1, flat.numel() // 25)):
            kept = float(flat[index])
            flat[index] = kept + step
            above = float(loss().detach())
            flat[index] = kept - step
            below = float(loss().detach())
            flat[index] = kept
            assert float(gradient[index]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6)


def test_a_second_backward_is_refused_not_wrong() -> None:
    hidden_ND, weight_VD, _, target_N = _inputs(torch.float32, bias=False)
    loss = linear_cross_entropy(hidden_ND, Head(weight_VD), target_N)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden_ND, weight_VD, _, target_N = _inputs(torch.float32, bias=False)
    frozen_VD = weight_VD.detach()
    linear_cross_entropy(hidden_ND, Head(frozen_VD), target_N).backward()
    assert frozen_VD.grad is None
    expected = torch.autograd.grad(_plain(hidden_ND, frozen_VD, None, target_N), hidden_ND)[0]
    torch.testing.assert_close(hidden_ND.grad, expected.float(), rtol=1e-4, atol=1e-4)


def test_tied_weights_get_both_gradients() -> None:
    """The embedding's own gradient must be added to the head's, not replaced by it."""
    embedding = torch.nn.Embedding(V, D, dtype=torch.float64)
    ids_N = torch.arange(N) % V
    target_N = (ids_N * 7 + 1) % V
    plain = _plain(embedding(ids_N), embedding.weight, None, target_N)
    expected = torch.autograd.grad(plain, embedding.weight)[0]
    loss = linear_cross_entropy(embedding(ids_N), Head(embedding.weight), target_N, 4 * V * 3)
    loss.backward()
    torch.testing.assert_close(embedding.weight.grad, expected)


def test_large_logits_stay_finite() -> None:
    hidden_ND = torch.full((2, D), 1e4, requires_grad=True)
    weight_VD = torch.randn(V, D, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = linear_cross_entropy(hidden_ND, Head(weight_VD), torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden_ND.grad).all()


def test_autocast_computes_in_bfloat16_and_accumulates_in_float32() -> None:
    hidden_ND, weight_VD, _, target_N = _inputs(torch.float32, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden_ND, Head(weight_VD), target_N)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight_VD.grad is not None
    assert weight_VD.grad.dtype == torch.float32
    expected = _plain(hidden_ND, weight_VD, None, target_N).detach()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=0.01)


def test_nothing_as_large_as_all_logits_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = torch.log_softmax

    def spy(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        seen.append(tensor.shape[0])
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(torch, "log_softmax", spy)
    hidden_ND, weight_VD, _, target_N = _inputs(torch.float32, bias=False)
    linear_cross_entropy(hidden_ND, Head(weight_VD), target_N, 4 * V * 10).backward()
    assert seen == [10, 10, 10, 7]


def test_a_budget_below_one_row_still_takes_one() -> None:
    assert rows_per_chunk(50_000, 1) == 1
