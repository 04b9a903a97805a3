"""Q4_K and Q6_K as written, read by the package gguf."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from easydistill.exporting.gguf_numbers import as_bytes, byte_shape, type_of

Q4_0, Q4_K, Q5_0, Q6_K, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_K", "Q5_0", "Q6_K", "Q8_0"))


def error(weight: NDArray[np.float32], kind: GGMLQuantizationType) -> float:
    """Root mean square of what rounding changes, over that of the weights."""
    found = quants.dequantize(as_bytes(weight, kind), kind)
    return float(np.sqrt(np.mean((found - weight) ** 2) / np.mean(weight**2)))


@pytest.fixture(params=["normal", "heavy tails", "shifted"])
def weight(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    drawn = np.random.default_rng(0)
    made = {
        "normal": drawn.normal(0, 0.02, (300, 768)),
        "heavy tails": drawn.standard_t(4, (300, 768)) * 0.02,
        "shifted": drawn.normal(0.01, 0.02, (300, 768)),
    }
    return made[request.param].astype(np.float32)


def test_four_bits_are_nearer_than_without_offsets(weight: NDArray[np.float32]) -> None:
    assert error(weight, Q4_K) < 0.95 * error(weight, Q4_0)


def test_six_bits_are_between_five_and_eight(weight: NDArray[np.float32]) -> None:
    assert error(weight, Q8_0) < error(weight, Q6_K) < 0.6 * error(weight, Q5_0)


@pytest.mark.parametrize("kind", [Q4_K, Q6_K])
def test_odd_blocks_are_read_as_they_are(kind: GGMLQuantizationType) -> None:
    """Zeros, one sign only, one huge weight, a constant: each super-block apart from its neighbours."""
    weight = np.zeros((5, 512), np.float32)
    weight[1] = np.linspace(0.001, 0.05, 512)
    weight[2] = -weight[1]
    weight[3, 300] = 900.0
    weight[4] = 0.5
    found = quants.dequantize(as_bytes(weight, kind), kind)
    assert np.isfinite(found).all() and not found[0].any()
    bound = 0.004 if kind is Q4_K else 0.002
    assert np.abs(found[1:3] - weight[1:3]).max() < bound
    assert found[3, 300] == pytest.approx(900.0, rel=0.02) and not found[3, :256].any()
    assert found[4] == pytest.approx(weight[4], rel=0.02)


def test_bytes_have_the_shape_that_the_type_has(weight: NDArray[np.float32]) -> None:
    for kind in (Q4_K, Q6_K, Q8_0):
        assert as_bytes(weight, kind).shape == byte_shape(weight.shape, kind)


def test_narrow_rows_get_a_larger_type() -> None:
    assert type_of("q4_k_m", "blk.3.attn_q.weight", (576, 576), 30) == (Q5_0, True)
    assert type_of("q4_k_m", "token_embd.weight", (100, 576), 30) == (Q8_0, True)
    assert type_of("q4_k_m", "blk.5.ffn_up.weight", (576, 1536), 30) == (Q4_K, False)
    assert type_of("q4_k_m", "blk.0.ffn_down.weight", (576, 1536), 30) == (Q6_K, False)
    assert type_of("q8_0", "blk.0.ffn_up.weight", (64, 40), 2)[0] == GGMLQuantizationType.F16
    assert type_of("q4_k_m", "blk.0.attn_norm.weight", (576,), 30)[0] == GGMLQuantizationType.F32
