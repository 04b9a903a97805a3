"""Teacher signals: extraction, encoding, and a store that returns them only for their own tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from easydistill.errors import DataError
from easydistill.models.head import Head
from easydistill.signals.codec import (
    LOGPROB_FLOOR,
    Codec,
    bits_for,
    decode_logprobs,
    decode_words,
    encode_logprobs,
    encode_words,
    pack,
    unpack,
)
from easydistill.signals.config import SampledSignals, ThresholdSignals, TopKSampledSignals, TopKSignals, TopPSignals
from easydistill.signals.extract import SignalShape, TeacherRows, extract, signal_of_logits
from easydistill.signals.shards import plan_shards
from easydistill.signals.signal import TeacherSignal, concatenate, weight_arrays
from easydistill.signals.store import (
    ScoredSample,
    SignalStore,
    StoreManifest,
    shard_path,
    token_hash,
    write_shard,
)
from easydistill.signals.unusable import check_usable, usable_rows, without_unusable

SHAPES = [
    SignalShape(8),
    SignalShape(30, top_p=0.9),
    SignalShape(0, draws=20),
    SignalShape(5, draws=7),
    SignalShape(40, draws=40, threshold=True),
]
VOCABULARY = 333


def logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, vocabulary, generator=generator)


def signal(rows: int, shape: SignalShape, seed: int = 0, temperature: float = 1.0) -> TeacherSignal:
    generator = torch.Generator().manual_seed(seed + 1)
    target = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    return signal_of_logits(logits(rows, seed), target, uniform, shape, temperature)


def codec_of(shape: SignalShape) -> Codec:
    return shape.codec(VOCABULARY)


# --- extraction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [5, 64, 65, 333, 4096])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_the_head_is_the_k_most_probable_tokens(vocabulary, k):
    z = logits(9, vocabulary=vocabulary)
    shape = SignalShape.of(TopKSignals(kind="top_k", k=k), vocabulary)
    found = signal_of_logits(z, torch.zeros(9, dtype=torch.long), torch.zeros(9), shape)
    values, ids = z.log_softmax(-1).topk(min(k, vocabulary))
    assert (found.head_ids_NK == ids.numpy()).all()
    np.testing.assert_allclose(found.head_logprobs_NK, values.numpy(), atol=2e-6)
    rest = 1 - values.double().exp().sum(-1)
    np.testing.assert_allclose(np.exp(found.log_rest_N), rest.clamp_min(0).numpy(), atol=2e-6)


def test_listing_every_token_leaves_no_rest():
    z = logits(4, vocabulary=70)
    found = signal_of_logits(z, torch.zeros(4, dtype=torch.long), torch.zeros(4), SignalShape(70))
    assert np.isneginf(found.log_rest_N).all()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_is_the_smallest_set_with_that_mass(top_p):
    z = logits(50)
    shape = SignalShape.of(TopPSignals(kind="top_p", top_p=top_p, k_max=VOCABULARY), VOCABULARY)
    found = signal_of_logits(z, torch.zeros(50, dtype=torch.long), torch.zeros(50), shape)
    ordered = z.double().softmax(-1).sort(-1, descending=True).values
    for row in range(50):
        used = int(np.isfinite(found.head_logprobs_NK[row]).sum())
        assert float(ordered[row, :used].sum()) >= top_p - 1e-6
        assert float(ordered[row, : used - 1].sum()) < top_p + 1e-6


def test_the_targets_log_probability_and_the_entropy():
    z = logits(30)
    found = signal(30, SignalShape(3, draws=5))
    exact = z.double().log_softmax(-1)
    target = torch.randint(0, VOCABULARY, (30,), generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(found.target_logprob_N, exact.gather(1, target[:, None])[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.entropy_N, -(exact.exp() * exact).sum(-1).numpy(), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_temperature_softens_the_head_but_not_the_target(shape):
    hot, cold = signal(20, shape, temperature=2.0), signal(20, shape)
    np.testing.assert_allclose(hot.target_logprob_N, cold.target_logprob_N, atol=1e-5)
    if shape.head:
        wanted = (logits(20) / 2).log_softmax(-1).topk(shape.head).values[:, 0]
        np.testing.assert_allclose(hot.head_logprobs_NK[:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        SignalShape(0, draws=3),
        SignalShape(4, draws=3),
        SignalShape(4, draws=40),
        SignalShape(9, draws=9, threshold=True),
        SignalShape(60, draws=60, threshold=True),
    ],
)
def test_draws_are_unbiased(shape):
    """The mean of the weights over many draws is the teacher's distribution, within five standard errors."""
    z = logits(1, seed=3, spread=2.0)
    probs = z.double().softmax(-1)[0]
    trials = 4000
    uniform = torch.rand(trials, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = signal_of_logits(z.expand(trials, -1).contiguous(), torch.zeros(trials, dtype=torch.long), uniform, shape)
    ids, logs, _ = found.weights()
    mean = torch.zeros(VOCABULARY, dtype=torch.float64)
    mean.index_add_(0, torch.from_numpy(ids.ravel()), torch.from_numpy(np.exp(logs.astype(np.float64)).ravel()))
    mean /= trials
    error = (probs * (1 - probs) / trials / shape.draws).sqrt()
    # A rarely drawn token may well be drawn twice more often than expected.
    assert ((mean - probs).abs() <= 5 * error + 2 / trials / shape.draws).all()
    if not shape.threshold:
        np.testing.assert_allclose(np.exp(logs).sum(-1), 1.0, atol=1e-5)


@pytest.mark.parametrize("n", [2, 20, 300])
def test_a_threshold_keeps_what_is_above_it_and_draws_the_rest_once(n):
    z = logits(40, spread=2.0)
    probs = z.double().softmax(-1)
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = signal_of_logits(z, torch.zeros(40, dtype=torch.long), uniform, SignalShape(n, draws=n, threshold=True))
    for row in range(40):
        used = np.isfinite(found.head_logprobs_NK[row])
        kept = set(found.head_ids_NK[row][used].tolist())
        sure = set(torch.nonzero(probs[row] > 1 / n + 1e-6).ravel().tolist())
        possible = set(torch.nonzero(probs[row] >= 1 / n - 1e-6).ravel().tolist())
        assert sure <= kept <= possible
        drawn = found.draw_ids_ND[row][found.draw_counts_ND[row] > 0].tolist()
        assert len(set(drawn)) == len(drawn)
        assert not set(drawn) & kept
        assert abs(len(drawn) - n * float(np.exp(found.log_rest_N[row]))) < 1 + 1e-6
        assert set(found.draw_counts_ND[row].tolist()) <= {0, 1}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(2, 200),
    k=st.integers(0, 12),
    draws=st.integers(0, 12),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 10_000),
)
def test_every_row_lists_different_tokens_and_all_of_the_mass(rows, vocabulary, k, draws, spread, seed):
    z = logits(rows, seed, vocabulary, spread)
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shape = SignalShape(min(k, vocabulary), draws=draws)
    found = signal_of_logits(z, torch.zeros(rows, dtype=torch.long), uniform, shape)
    ids, logs, rest = found.weights()
    for row in range(rows):
        used = ids[row][np.isfinite(logs[row])]
        assert len(set(used.tolist())) == len(used)
        assert ((used >= 0) & (used < vocabulary)).all()
    total = np.exp(logs.astype(np.float64)).sum(-1) + np.exp(rest.astype(np.float64))
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    assert not np.isnan(found.log_rest_N).any()


def test_padding_of_the_vocabulary_is_left_out():
    hidden = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    target, uniform = torch.arange(11), torch.zeros(11)
    plain = extract(TeacherRows([hidden], [Head(weight[:70])], [0.0]), target, uniform, SignalShape(5), 70)
    padded = extract(TeacherRows([hidden], [Head(weight)], [0.0]), target, uniform, SignalShape(5), 70)
    np.testing.assert_array_equal(plain.head_ids_NK, padded.head_ids_NK)
    np.testing.assert_allclose(plain.head_logprobs_NK, padded.head_logprobs_NK, atol=1e-6)


def test_several_teachers_are_mixed_by_weight():
    hidden = [torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    heads = [Head(torch.randn(70, 6, generator=torch.Generator().manual_seed(seed))) for seed in (2, 3)]
    weights = [0.25, 0.75]
    rows = TeacherRows(hidden, heads, [float(np.log(weight)) for weight in weights])
    found = extract(rows, torch.arange(8), torch.zeros(8), SignalShape(70), 70)
    mixed = sum(
        weight * head.logits(state).softmax(-1) for weight, head, state in zip(weights, heads, hidden, strict=True)
    )
    wanted = mixed.log().gather(1, torch.from_numpy(found.head_ids_NK))
    np.testing.assert_allclose(found.head_logprobs_NK, wanted.numpy(), atol=1e-5)


# --- bits ------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 57), data=st.data())
def test_packing_is_exact(width, data):
    values = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40)), np.int64)
    packed = pack(values, width)
    assert len(packed) == -(-len(values) * width // 8)
    assert unpack(packed, len(values), width).tolist() == values.tolist()


def test_rounding_of_logprobs_is_small():
    exact = -np.linspace(0, LOGPROB_FLOOR, 10_000).astype(np.float32)
    found = decode_logprobs(encode_logprobs(exact))
    # Relative error of a probability: at most 2 % anywhere, and below 0.2 % of the whole where it matters most.
    assert np.abs(found - exact).max() < 0.02
    assert np.abs(np.exp(found) - np.exp(exact)).max() < 2e-3


def test_words_keep_zero_mass_and_unknown_values():
    values = np.array([0.0, -0.5, -20.0, -np.inf], np.float32)
    found = decode_words(encode_words(values), -np.inf)
    np.testing.assert_allclose(found[:3], values[:3], atol=3e-4)
    assert np.isneginf(found[3])


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_inverts_encoding(shape):
    exact = signal(40, shape)
    codec = codec_of(shape)
    found = codec.decode(codec.encode(exact))
    np.testing.assert_array_equal(np.isfinite(found.head_logprobs_NK), np.isfinite(exact.head_logprobs_NK))
    np.testing.assert_array_equal(found.head_ids_NK, exact.head_ids_NK)
    np.testing.assert_array_equal(found.draw_ids_ND, exact.draw_ids_ND)
    np.testing.assert_array_equal(found.draw_counts_ND, exact.draw_counts_ND)
    np.testing.assert_allclose(np.exp(found.head_logprobs_NK), np.exp(exact.head_logprobs_NK), atol=4e-3)
    _, logs, rest = found.weights()
    if not shape.threshold:
        np.testing.assert_allclose(np.exp(logs).sum(-1) + np.exp(rest), 1.0, atol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_rows_without_a_head_keep_their_draws(spread):
    """Where no token reaches 1/n, everything is drawn; nothing becomes NaN, and unused places repeat a used token."""
    z = logits(25, spread=spread)
    uniform = torch.rand(25, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    shape = SignalShape(20, draws=20, threshold=True)
    exact = signal_of_logits(z, torch.zeros(25, dtype=torch.long), uniform, shape)
    codec = shape.codec(VOCABULARY)
    found = weight_arrays(codec.decode(codec.encode(exact)), np.ones(25, bool))
    assert not any(np.isnan(array).any() for array in found.values())
    used = np.isfinite(found["logweights_NM"])
    assert used[:, 0].all()
    for ids, on in zip(found["ids_NM"], used, strict=True):
        assert len(set(ids[on].tolist())) == on.sum()
        assert set(ids[~on].tolist()) <= {ids[0]}
    np.testing.assert_allclose(np.exp(found["logweights_NM"]).sum(-1), 1.0, atol=0.1)


def test_narrow_signals_are_joined_to_wide_ones():
    first, second = signal(5, SHAPES[1], seed=1), signal(7, SHAPES[1], seed=2)
    joined = concatenate([first, second])
    assert len(joined) == 12
    arrays = weight_arrays(joined, np.ones(12, bool))
    alone = weight_arrays(second, np.ones(7, bool))
    np.testing.assert_allclose(np.exp(arrays["logweights_NM"][5:]).sum(-1), np.exp(alone["logweights_NM"]).sum(-1))


def test_tokens_without_a_signal_get_an_empty_row():
    made = signal(3, SHAPES[0])
    arrays = weight_arrays(made, np.array([True, False, True, False, True]))
    assert arrays["present_N"].tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(arrays["ids_NM"][[0, 2, 4]], made.head_ids_NK)
    assert np.isneginf(arrays["logweights_NM"][[1, 3]]).all()
    assert (arrays["log_rest_N"][[1, 3]] == 0).all()


def test_kinds_name_their_shape():
    assert SignalShape.of(TopKSignals(kind="top_k", k=10), 1000) == SignalShape(10)
    assert SignalShape.of(TopKSignals(kind="top_k", k=10), 4) == SignalShape(4)
    assert SignalShape.of(SampledSignals(kind="sampled", draws=9), 1000) == SignalShape(0, draws=9)
    assert SignalShape.of(TopKSampledSignals(kind="top_k_sampled", k=3, draws=4), 1000) == SignalShape(3, draws=4)
    assert SignalShape.of(ThresholdSignals(n=50), 1000) == SignalShape(50, draws=50, threshold=True)
    assert SignalShape.of(TopPSignals(kind="top_p", top_p=0.5, k_max=7), 1000) == SignalShape(7, 0.5)


# --- the store -------------------------------------------------------------------------------------------------


def sample(name: str, shape: SignalShape, seed: int, *, gaps: bool = False) -> ScoredSample:
    generator = np.random.default_rng(seed)
    length = int(generator.integers(4, 30))
    learned = [False, *(generator.random(length - 1) < 0.6)]
    learned[-1] = True
    count = int(np.sum(learned))
    present = generator.random(count) < 0.5 if gaps else np.ones(count, bool)
    present[0] = True
    ids = generator.integers(0, VOCABULARY, length).tolist()
    return ScoredSample(name, ids, [bool(on) for on in learned], signal(int(present.sum()), shape, seed), present)


def make_store(directory: Path, samples: list[ScoredSample], shape: SignalShape, per_shard: int = 3) -> SignalStore:
    codec = codec_of(shape)
    shards = [samples[at : at + per_shard] for at in range(0, len(samples), per_shard)]
    for number, part in enumerate(shards):
        write_shard(shard_path(directory, number), part, codec)
    StoreManifest.of(directory, codec, {"signals": {"kind": "test"}}, len(shards)).write(directory)
    return SignalStore(directory)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_that_are_no_distribution_are_left_out(tmp_path, shape, value):
    """Logits that overflowed: every kind of signal loses exactly those rows, and the others are stored as ever."""
    broken = logits(6, 3)
    broken[[1, 4]] = value
    target, uniform = torch.arange(6), torch.full((6,), 0.5, dtype=torch.float64)
    found = signal_of_logits(broken, target, uniform, shape, 1.0)
    whole = signal_of_logits(logits(6, 3), target, uniform, shape, 1.0)
    assert usable_rows(found).tolist() == [True, False, True, True, False, True]
    assert usable_rows(whole).all()
    given = ScoredSample("row", [0, *range(6)], [False, *[True] * 6], found, np.ones(6, bool))
    kept = without_unusable(given)
    assert kept.present.tolist() == [True, False, True, True, False, True]
    signal_of_row, present = make_store(tmp_path, [kept], shape).read("row", given.token_ids, given.learned)
    assert present.tolist() == kept.present.tolist()
    np.testing.assert_allclose(signal_of_row.target_logprob_N, whole.target_logprob_N[present], atol=0.01)
    arrays = weight_arrays(signal_of_row, present)
    assert arrays["present_N"].tolist() == present.tolist()
    assert not np.isnan(arrays["logweights_NM"]).any()


@pytest.mark.parametrize("placeholder", [-9999.0, -1e30])
def test_placeholders_are_left_out_and_improbable_tokens_kept(placeholder):
    head = np.log(np.array([[0.7, 0.2], [0.7, 0.2], [0.7, 0.2]]))
    head[1, 1], head[2, 1] = placeholder, -300.0
    target = np.array([-0.3, -0.3, placeholder])
    made = TeacherSignal.without_draws(np.array([[1, 2]] * 3), head, np.log(np.full(3, 0.1)), target)
    kept = without_unusable(ScoredSample("row", [1, 2, 3, 4], [False, True, True, True], made, np.ones(3, bool)))
    assert kept.present.tolist() == [True, False, True]
    assert kept.signal.target_logprob_N.tolist() == [np.float32(-0.3), -np.inf]


def test_gaps_of_an_aligned_teacher_stay_gaps():
    given = sample("row", SHAPES[0], 7, gaps=True)
    broken = replace(given.signal, log_rest_N=given.signal.log_rest_N.copy())
    broken.log_rest_N[0] = np.nan
    kept = without_unusable(replace(given, signal=broken))
    assert kept.present.sum() == given.present.sum() - 1
    assert not (kept.present & ~given.present).any()
    assert len(kept.signal) == kept.present.sum()


def test_a_teacher_without_any_distribution_is_an_error():
    made = TeacherSignal.without_draws(np.array([[1]]), np.array([[np.nan]]), np.array([np.nan]), np.array([np.nan]))
    given = ScoredSample("row", [1, 2], [False, True], made, np.ones(1, bool))
    with pytest.raises(DataError, match=r"not finite(.|\n)*float32"):
        check_usable([given], [without_unusable(given)])
    check_usable([], [])


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_sample_is_found_by_id(tmp_path, shape, gaps):
    samples = [sample(f"行-{at}", shape, at, gaps=gaps) for at in range(10)]
    store = make_store(tmp_path, samples, shape)
    assert sorted(store.ids) == sorted(item.id for item in samples)
    assert store.manifest.tokens == sum(len(item.signal) for item in samples)
    for item in reversed(samples):
        found, present = store.read(item.id, item.token_ids, item.learned)
        codec = codec_of(shape)
        wanted = codec.decode(codec.encode(item.signal))
        np.testing.assert_array_equal(found.head_ids_NK, wanted.head_ids_NK)
        np.testing.assert_array_equal(found.head_logprobs_NK, wanted.head_logprobs_NK)
        np.testing.assert_array_equal(found.draw_ids_ND, wanted.draw_ids_ND)
        np.testing.assert_array_equal(present, item.present)
        assert store.tokens(item.id) == (list(item.token_ids), list(item.learned))


def test_a_signal_of_other_tokens_is_refused(tmp_path):
    samples = [sample(f"row-{at}", SHAPES[0], at) for at in range(4)]
    store = make_store(tmp_path, samples, SHAPES[0])
    first, second = samples[:2]
    with pytest.raises(DataError, match="made for other tokens"):
        store.read(first.id, second.token_ids, second.learned)
    changed = [*first.token_ids]
    changed[2] = (changed[2] + 1) % VOCABULARY
    with pytest.raises(DataError, match=r"token 2 was id \d+ and is id \d+"):
        store.read(first.id, changed, first.learned)
    other_mask = [*first.learned[:-1], False]
    with pytest.raises(DataError, match="tokens were learned"):
        store.read(first.id, first.token_ids, other_mask)
    with pytest.raises(DataError, match="tokens were scored, the row has"):
        store.read(first.id, [*first.token_ids, 5], [*first.learned, True])
    with pytest.raises(DataError, match="no signal for row row-99"):
        store.read("row-99", first.token_ids, first.learned)


def test_swapped_ids_are_noticed(tmp_path):
    """If the ids of two samples in a shard are swapped, reading fails instead of giving another row's signal."""
    samples = [sample(f"row-{at}", SHAPES[0], at) for at in range(3)]
    swapped = [replace(samples[0], id="row-1"), replace(samples[1], id="row-0"), samples[2]]
    store = make_store(tmp_path, swapped, SHAPES[0])
    for item in samples[:2]:
        with pytest.raises(DataError, match="made for other tokens"):
            store.read(item.id, item.token_ids, item.learned)
    store.read(samples[2].id, samples[2].token_ids, samples[2].learned)


def test_an_incomplete_store_is_refused(tmp_path):
    samples = [sample(f"row-{at}", SHAPES[0], at) for at in range(4)]
    make_store(tmp_path, samples, SHAPES[0], per_shard=2)
    (tmp_path / "store.json").rename(tmp_path / "away.json")
    with pytest.raises(DataError, match="no complete signal store"):
        SignalStore(tmp_path)
    (tmp_path / "away.json").rename(tmp_path / "store.json")
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(DataError, match="shard-00001"):
        SignalStore(tmp_path)


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_torn_shard_is_named(tmp_path, cut):
    samples = [sample(f"row-{at}", SHAPES[0], at) for at in range(4)]
    make_store(tmp_path, samples, SHAPES[0])
    path = shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"shard-00000.*not a readable shard"):
        SignalStore(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 9}', "nonsense"])
def test_a_broken_manifest_is_named(tmp_path, text):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(DataError, match="store"):
        SignalStore(tmp_path)


def test_a_store_of_another_format_is_refused(tmp_path):
    make_store(tmp_path, [sample("row", SHAPES[0], 0)], SHAPES[0])
    found = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(found | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        SignalStore(tmp_path)


def test_a_store_may_move(tmp_path):
    item = sample("row", SHAPES[3], 0)
    make_store(tmp_path / "here", [item], SHAPES[3])
    shutil.move(tmp_path / "here", tmp_path / "there")
    SignalStore(tmp_path / "there").read("row", item.token_ids, item.learned)


def test_hashes_distinguish_ids_and_masks():
    assert token_hash([1, 2, 3], [False, True, True]) != token_hash([1, 2, 4], [False, True, True])
    assert token_hash([1, 2, 3], [False, True, True]) != token_hash([1, 2, 3], [False, False, True])
    assert token_hash([1, 2], [False, True]) != token_hash([1, 2, 0], [False, True, False])


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    batch_tokens=st.integers(1, 200),
    shard_tokens=st.integers(1, 400),
)
def test_shards_hold_every_row_once(lengths, batch_tokens, shard_tokens):
    shards = plan_shards(lengths, batch_tokens, shard_tokens)
    rows = [index for shard in shards for batch in shard.batches for index in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for shard in shards:
        assert len(shard.batches) == 1 or sum(lengths[i] for b in shard.batches for i in b) <= shard_tokens
        for batch in shard.batches:
            assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= batch_tokens


def test_ids_take_as_few_bits_as_possible():
    assert [bits_for(count) for count in (1, 2, 3, 256, 257, 49_152, 151_665)] == [1, 1, 2, 8, 9, 16, 18]
