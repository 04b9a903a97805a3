"""Rows in one sequence have the losses, gradients and signals that they have in a padded batch."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.integration.test_supervised import VOCABULARY, config, rows, student
from tests.support import architectures
from torch.nn.functional import scaled_dot_product_attention

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.methods.sft import flat_batches
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import ROW_BOUNDS, TokenRow, collate
from easydistill.methods.sft.feeding import Feed
from easydistill.methods.sft.flat_batches import collate_short
from easydistill.methods.shared.compat import cross_entropy_loss, fuse_loss
from easydistill.models import allocation, flat_rows
from easydistill.models.flat_rows import FlatRows, takes_flat_rows
from easydistill.models.head import body_of
from easydistill.models.rows_attention import RowsLayout, attend, rows_attention
from easydistill.signals.config import ThresholdSignals
from easydistill.signals.score import ModelScorer, RowToScore

BEGINNING = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]


def alike(count: int) -> list[TokenRow]:
    """Rows of several lengths with a common beginning, which is not learned."""
    return [
        TokenRow(row.id, [*BEGINNING, *row.ids], [*[False] * len(BEGINNING), *row.learned.tolist()])
        for row in rows(count)
    ]


def loss_and_gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    with rows_attention():
        loss = model(**batch)["loss"]
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_attention_is_that_of_each_row(shared: int, key_heads: int) -> None:
    torch.manual_seed(0)
    lengths, heads, width = (4, 7, 1), 6, 8
    count = shared + sum(lengths)
    query, key, value = (
        torch.randn(count, number, width, dtype=torch.float64, requires_grad=True)
        for number in (heads, key_heads, key_heads)
    )
    outer = torch.randn(count, heads, width, dtype=torch.float64)

    def plainly(queries: list[int], keys: list[int]) -> torch.Tensor:
        mask = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
        parts = (query[queries], key[keys], value[keys])
        q, k, v = (part.transpose(0, 1)[None].repeat_interleave(heads // part.shape[1], 1) for part in parts)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)[0].transpose(0, 1)

    first = list(range(shared))
    expected, at = [plainly(first, first)] if shared else [], shared
    for length in lengths:
        own = list(range(at, at + length))
        expected.append(plainly(own, first + own))
        at += length
    wanted = torch.cat(expected)
    found = attend(query, key, value, RowsLayout(shared, lengths), 0.3)
    assert torch.allclose(found, wanted, atol=1e-12)
    gradients = torch.autograd.grad(found, (query, key, value), outer)
    for one, other in zip(gradients, torch.autograd.grad(wanted, (query, key, value), outer), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("common", [True, False])
def test_losses_and_gradients_are_those_of_a_padded_batch(tiny_model: Path, common: bool) -> None:
    model = student(tiny_model).model
    assert takes_flat_rows(model)
    fuse_loss(model, cross_entropy_loss(1 << 20))
    items = [[row] for row in (alike(8) if common else rows(8))]
    flat, padded = collate_short(items), collate(items, pad=0)
    assert flat[ROW_BOUNDS][0] == (len(BEGINNING) if common else 0)
    assert flat["input_ids"].numel() < padded["input_ids"].numel() - (70 if common else 0)
    assert torch.equal(flat["target_N"], padded["target_N"])
    # What Trainer counts.
    assert (flat["labels"][:, 1:] != -100).sum() == len(flat["target_N"])
    loss, gradients = loss_and_gradients(model, flat)
    expected, others = loss_and_gradients(model, padded)
    assert loss == pytest.approx(expected, rel=1e-5)
    for one, other in zip(gradients, others, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_bfloat16_is_no_less_exact(tiny_model: Path) -> None:
    model = student(tiny_model).model
    fuse_loss(model, cross_entropy_loss(1 << 20))
    items = [[row] for row in alike(8)]
    _, exact = loss_and_gradients(model, collate(items, pad=0))

    def error(batch: dict[str, torch.Tensor]) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            _, found = loss_and_gradients(model, batch)
        square = sum(float((one - other).square().sum()) for one, other in zip(found, exact, strict=True))
        return float((square / sum(float(one.square().sum()) for one in exact)) ** 0.5)

    assert error(collate_short(items)) < 1.2 * error(collate(items, pad=0)) < 0.1


def test_answers_that_begin_alike_keep_their_labels() -> None:
    """A learned token is never part of the common beginning, but may be predicted from its end."""
    ids, learned = [*range(20, 34)], [False] * 10 + [True] * 4
    made = [TokenRow(str(n), [*ids, 40 + n], [*learned, True]) for n in range(3)]
    flat = collate_short([[row] for row in made])
    assert flat[ROW_BOUNDS].tolist() == [10, 5, 5, 5]
    assert flat["learned_N"].tolist() == [9, 10, 11, 12, 13, 9, 15, 16, 17, 18, 9, 20, 21, 22, 23]
    assert flat["target_N"].tolist() == [token for row in made for token in row.ids_T[10:].tolist()]


def trained(tiny_model: Path, where: Path, found: list[TokenRow]) -> list[torch.Tensor]:
    made = student(tiny_model)
    supervised.train(made, found, config(), where, Reporter(None, quiet=True), StopSignal())
    return [weight.detach() for weight in made.model.parameters()]


def test_a_training_uses_it(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def tokens(self: Feed, items: Any, known: Any = Feed.tokens) -> Any:
        batch = known(self, items)
        seen.append(ROW_BOUNDS in batch)
        return batch

    monkeypatch.setattr(Feed, "tokens", tokens)
    weights = trained(tiny_model, tmp_path / "flat", alike(16))
    assert seen and all(seen)
    seen.clear()
    # Longer rows are padded.
    monkeypatch.setattr(flat_batches, "LONGEST", 12)
    others = trained(tiny_model, tmp_path / "padded", alike(16))
    assert seen and not any(seen)
    for one, other in zip(weights, others, strict=True):
        assert torch.allclose(one, other, atol=2e-4)


def test_models_that_are_not_known_to_suit_are_not_asked(tiny_model: Path) -> None:
    dropping, eager, windowed = (student(tiny_model).model for _ in range(3))
    dropping.config.attention_dropout = 0.1
    eager.set_attn_implementation("eager")
    windowed.config.sliding_window = 16
    assert not any(takes_flat_rows(model) for model in (dropping, eager, windowed))


def test_hidden_states_of_rows_that_end_in_the_beginning_of_others(tiny_model: Path) -> None:
    model = student(tiny_model).model
    body = body_of(model)
    found = [np.arange(5, 5 + size) for size in (9, 30, 12)]
    flat = FlatRows.of(found)
    assert flat.layout.shared == 8
    with torch.no_grad():
        hidden_ND = flat.hidden(model)
        assert hidden_ND is not None
        for number, ids in enumerate(found):
            alone_TD = body(input_ids=torch.from_numpy(ids)[None], use_cache=False).last_hidden_state[0]
            at = flat.layout.places(torch.full((len(ids),), number), torch.arange(len(ids)))
            assert torch.allclose(hidden_ND[at], alone_TD, atol=1e-4)


def test_signals_are_those_of_padded_rows(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = ThresholdSignals(n=8, dtype="float32")
    asked = [RowToScore(row.id, row.ids_T, row.learned) for row in alike(6)]

    def scored() -> list[Any]:
        scorer = ModelScorer([str(tiny_model)], [1.0], signals, VOCABULARY, 1.0)
        return [sample.signal for sample in scorer.score(asked)]

    usual = scored()
    monkeypatch.setattr(flat_rows, "takes_flat_rows", lambda model: False)
    for one, other in zip(usual, scored(), strict=True):
        assert np.allclose(one.target_logprob_N, other.target_logprob_N, atol=1e-4)
        assert np.allclose(one.entropy_N, other.entropy_N, atol=1e-4)


def test_a_check_that_fails_is_no_error(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = student(tiny_model).model

    def unknown(body: Any, *args: Any) -> Any:
        raise TypeError("forward() got an unexpected keyword argument 'rows_layout'")

    monkeypatch.setattr(flat_rows, "flat_hidden", unknown)
    assert not takes_flat_rows(model)


@pytest.mark.skipif(sys.platform != "linux" or allocation._glibc() is None, reason="needs glibc")
def test_freed_memory_is_used_again() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(48 << 18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = (48 << 20) // resource.getpagesize()
    assert faults() > 3 * pages
    with allocation.reused_memory(torch.device("cpu")), allocation.reused_memory(torch.device("cpu")):
        # Small blocks may be cut off a large one, in whose place it then no longer fits.
        for _ in range(4):
            faults()
        assert faults() < pages / 4
    assert faults() > 3 * pages


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        # A convolution sees the end of the row before, which is a small part of what a token is given by others.
        ("lfm2", {}),
        ("lfm2", {"initializer_range": 0.2}),
        ("falcon_h1", {}),
        # Many rows are longer than a window that is wider than each of them.
        ("phimoe", {"sliding_window": 300, "router_jitter_noise": 0.0}),
        ("llama4_text", {"attention_chunk_size": 300}),
        # Drop by functions, not by modules; BioGPT's attention does so too, under a name of its own.
        ("opt", {"dropout": 0.1}),
        ("biogpt", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1}),
        ("phimoe", {"router_jitter_noise": 0.1, "sliding_window": None}),
    ],
)
def test_rows_that_would_see_or_share_more_are_padded(architecture: str, values: dict[str, Any]) -> None:
    assert not takes_flat_rows(architectures.tiny_model(architecture, **values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral", "phi3", "gpt_neox", "opt"]
)
def test_usual_architectures_take_rows_in_one_sequence(architecture: str, dtype: torch.dtype) -> None:
    values = {"dropout": 0.0} if architecture == "opt" else {"sliding_window": None}
    model = architectures.tiny_model(architecture, **values)
    model.to(dtype).train()
    drawn = torch.get_rng_state()
    assert takes_flat_rows(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
