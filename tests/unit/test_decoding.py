"""Decoding token by token: the answers of `generate`, for the models whose cache allows it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.support.tiny import tiny_llama
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from easydistill.models.decoding.attention import NAME, by_kernel, grouped_attention, multiplied
from easydistill.models.decoding.batch import Batch, shared_prefix
from easydistill.models.decoding.check import decodes
from easydistill.models.decoding.graphs import CHECK_EVERY, DecodeGraphs, RecordedStep, recordable
from easydistill.models.decoding.loop import decode
from easydistill.models.draws import BLOCK, DrawRule, SeededSampler, draw, invert_cdf
from easydistill.models.sampling import by_generate, generate_batch

VOCABULARY = 700
ENDS = frozenset(range(0, VOCABULARY, 9))
"""So many that rows end at different steps, and leave the batch."""
PREFIX = list(range(20, 40))
PROMPTS = [[number + 1, *range(50, 50 + 3 * number + 1)] for number in range(9)]


def made(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        model: Any = LlamaForCausalLM(tiny_llama(VOCABULARY))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=80))
    else:
        shape = tiny_llama(VOCABULARY).to_dict()
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = MistralConfig(**{name: shape[name] for name in names}, num_key_value_heads=2, sliding_window=8)
        model = MistralForCausalLM(config)
    for parameter in model.parameters():
        # Larger weights than those of a new model: its answers would not depend on the prompts.
        parameter.data.mul_(4.0)
    return model.to(dtype).eval()


def sampler(rows: int, **values: Any) -> SeededSampler:
    return SeededSampler(range(rows), **{"temperature": [(0.0, 0.8, 1.3)[row % 3] for row in range(rows)], **values})


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prefix", [[], PREFIX], ids=["no common beginning", "common beginning"])
@pytest.mark.parametrize("values", [{}, {"top_p": 0.8}, {"top_k": 30}, {"temperature": 0.0}], ids=str)
def test_answers_are_those_of_generate(kind: str, prefix: list[int], values: dict[str, Any]) -> None:
    model, prompts = made(kind), [prefix + prompt for prompt in PROMPTS]
    assert decodes(model, prompts[0])
    ours = generate_batch(model, prompts, ENDS, 24, sampler(len(prompts), **values))
    with torch.inference_mode():
        theirs = by_generate(model, prompts, ENDS, 24, [sampler(len(prompts), **values)])
    for answer, row in zip(ours, theirs, strict=True):
        kept = list(itertools.takewhile(lambda token: token not in ENDS, row))
        assert (answer.ids, answer.ended) == (kept, len(kept) < len(row))
        assert answer.end == (row[len(kept)] if answer.ended else None)
    assert len({len(answer.ids) for answer in ours}) > 3


def test_the_model_is_left_as_it_was() -> None:
    model = made("llama", torch.float32)
    with grouped_attention(model):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"
    answers = [generate_batch(model, PROMPTS, ENDS, 8, sampler(len(PROMPTS))) for _ in range(2)]
    assert answers[0] == answers[1]
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attend", [multiplied, by_kernel])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_by_groups_is_that_of_transformers(attend: Any, kind: str, scaling: float | None) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, tokens, 8) for heads, tokens in ((6, 1), (2, 11), (2, 11)))
    seen = torch.rand(3, 1, 1, 11) > 0.3
    added = torch.zeros(3, 1, 1, 11).masked_fill(~seen, -torch.inf)
    mask = {"none": None, "bool": seen, "float": added}[kind]
    module = torch.nn.Module()
    module.num_key_value_groups = 3  # type: ignore[assignment]
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
    found = attend(query.reshape(3, 2, 3, 8), key, value, mask, scaling)
    torch.testing.assert_close(found.reshape(3, 1, 6, 8), expected)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_keys_and_values_that_are_repeated_by_strides_are_attended_to(dim: int) -> None:
    torch.manual_seed(0)
    shape = [3, 2, 11, 8]
    query = torch.randn(3, 2, 3, 8)
    key, value = (torch.randn(*shape[:dim], 1, *shape[dim + 1 :]).expand(shape) for _ in range(2))
    expected = multiplied(query, key.clone(), value.clone(), None, None)
    torch.testing.assert_close(multiplied(query, key, value, None, None), expected)


def test_models_with_windows_or_states_go_through_generate() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    assert not decodes(made("mistral"), PROMPTS[3])
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)).eval()
    assert not decodes(mamba, [1, 2, 3])
    answers = generate_batch(made("mistral"), PROMPTS, ENDS, 12, sampler(len(PROMPTS)))
    assert all(answer.end in ENDS for answer in answers if answer.ended)


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids", "past_key_values"])
def test_what_a_model_ignores_shows_in_its_numbers(ignored: str) -> None:
    """A class may take an argument and not use it."""
    model = made("llama")
    forward = type(model).forward

    def forgetful(
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        return forward(model, input_ids, **{**given, ignored: None}, use_cache=use_cache)

    assert decodes(made("llama"), PROMPTS[3])
    model.forward = forgetful
    assert not decodes(model, PROMPTS[3])


def test_rows_that_leave_do_not_change_the_others() -> None:
    model, prompts = made("llama"), [PREFIX + prompt for prompt in PROMPTS]
    steps = torch.arange(60, 60 + len(prompts))
    with torch.no_grad():
        whole, fewer = (Batch(model, prompts, 3) for _ in range(2))
        whole.begin(), fewer.begin()
        whole.step(steps), fewer.step(steps)
        fewer.keep([1, 4, 8])
        both = whole.step(steps + 7), fewer.step((steps + 7)[[1, 4, 8]])
    torch.testing.assert_close(both[0][[1, 4, 8]], both[1])


def test_under_autocast_the_cache_is_in_the_dtype_of_attention() -> None:
    model, prompts = made("llama", torch.float32), [PREFIX + prompt for prompt in PROMPTS]
    tokens = torch.arange(60, 60 + len(prompts))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), grouped_attention(model):
        batch = Batch(model, prompts, 2)
        batch.begin()
        own = batch.step(tokens).float()
        cached = {(layer.keys.dtype, layer.values.dtype) for layer in batch._layers}
        rows = [[*prompt, token] for prompt, token in zip(prompts, tokens.tolist(), strict=True)]
        whole = torch.stack([model(torch.tensor([row])).logits[0, -1].float() for row in rows])
    assert cached == {(torch.bfloat16, torch.bfloat16)}
    assert float((own - whole).abs().mean()) < 0.03 * float(whole.std())


def test_common_beginnings() -> None:
    assert shared_prefix([[*PREFIX, 1, 2], [*PREFIX, 3]]) == len(PREFIX)
    assert shared_prefix([PREFIX, PREFIX]) == len(PREFIX) - 1
    assert shared_prefix([[*PREFIX, 1], PREFIX[:4]]) == 0
    assert shared_prefix([[1], [2]]) == 0
    assert shared_prefix([PREFIX]) == 0


# --- draws ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
def test_the_distribution_is_inverted_exactly(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weights = torch.rand(400, width, generator=generator) ** 8
    weights[:, ::3] = 0.0
    weights[:200, width // 2 + 1 :] = 0.0
    uniform = torch.rand(400, 1, generator=generator, dtype=torch.float64)
    uniform[:20], uniform[20:40] = 1.0 - 2**-53, 0.0
    found = invert_cdf(weights, uniform)
    assert bool((weights.gather(1, found[:, None]) > 0).all())
    cumulative = weights.double().cumsum(-1)
    share = cumulative / cumulative[:, -1:]
    after = share.gather(1, found[:, None])
    before = torch.where(found[:, None] > 0, share.gather(1, (found[:, None] - 1).clamp(min=0)), 0.0)
    assert bool((after >= uniform - 1e-6).all())
    assert bool((before <= uniform + 1e-6).all())


@pytest.mark.parametrize("width", [3, BLOCK + 5])
def test_a_row_without_a_distribution_gets_some_token(width: int) -> None:
    """An index beyond the vocabulary would stop a GPU."""
    weights = torch.stack([torch.full((width,), torch.nan), torch.zeros(width)])
    found = invert_cdf(weights, torch.full((2, 1), 0.5, dtype=torch.float64))
    assert bool(((found >= 0) & (found < width)).all())


def test_draws_over_many_blocks_follow_the_distribution() -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    uniform = torch.rand(60_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    heat = torch.full((60_000, 1), 0.7)
    drawn = draw(logits.expand(60_000, -1), uniform, heat, DrawRule("drawn"))
    expected = (logits / 0.7).softmax(-1).double() * 60_000
    often = expected > 5
    counts = torch.bincount(drawn, minlength=VOCABULARY).double()
    statistic = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    freedom = int(often.sum())
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def test_a_nucleus_is_the_same_however_much_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(300, 2000, generator=torch.Generator().manual_seed(3)) * 3
    uniform = torch.rand(300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    rule, heat = DrawRule("drawn", top_p=0.7), torch.ones(300, 1)
    few = draw(logits, uniform, heat, rule)
    monkeypatch.setattr("easydistill.models.draws.NUCLEUS_TRIED", 2000)
    assert torch.equal(few, draw(logits, uniform, heat, rule))


# --- recorded steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_steps_that_are_recorded_on_a_gpu_give_the_same_answers(kind: str) -> None:
    """Here they run without a graph: on tensors of fixed size, which rows of several batches fill in turn."""
    model = made(kind)
    graphs = DecodeGraphs(record=False)
    for prompts, ends, values in [
        (PROMPTS, ENDS, {}),
        (PROMPTS[:5], ENDS, {}),
        ([PREFIX + prompt for prompt in PROMPTS], ENDS, {"top_p": 0.9}),
        (PROMPTS[::-1], frozenset[int](), {"temperature": 0.0}),
    ]:
        with torch.inference_mode():
            rows = graphs.decode(model, prompts, ends, 40, sampler(len(prompts), **values))
        assert rows is not None
        expected = decode(model, prompts, ends, 40, sampler(len(prompts), **values), None)
        assert [row[: len(whole)] for row, whole in zip(rows, expected, strict=True)] == expected


def test_recorded_steps_stop_when_all_rows_have_ended() -> None:
    graphs = DecodeGraphs(record=False)
    rows = graphs.decode(made("llama"), PROMPTS, frozenset(range(VOCABULARY)), 40, sampler(len(PROMPTS)))
    assert rows is not None
    assert {len(row) for row in rows} == {CHECK_EVERY}


def test_a_batch_of_the_same_shape_uses_the_same_step() -> None:
    graphs, model = DecodeGraphs(record=False), made("llama")

    def step(prompts: list[list[int]]) -> Any:
        graphs.decode(model, prompts, ENDS, 8, sampler(len(prompts)))
        return graphs._step

    first = step(PROMPTS)
    assert step(PROMPTS[2:]) is first
    assert step([[5] * 300]) is not first


class Operations(TorchDispatchMode):
    """Remembers the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "_unique2",
    "repeat_interleave",
    "lift_fresh",
}
"""Operations whose result the host reads, or whose input it makes: a graph cannot hold them."""


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("values", [{}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 30}], ids=str)
def test_a_recorded_step_never_waits_and_its_tensors_stay(kind: str, values: dict[str, Any]) -> None:
    model, asked = made(kind), PROMPTS[:4]
    draws = sampler(4, **values)
    step = RecordedStep(model, 4, 64, 8, ENDS, draws.rule)

    def places() -> list[int]:
        own = [step._uniform_BN, step._heat_B1, step._written_BN, step._ended_B, step._at_1, step._logits_BV]
        batch = step._batch
        cached = [part for layer in batch._cache.layers for part in (layer.keys, layer.values, layer.cumulative_length)]
        return [part.data_ptr() for part in (*own, *cached, batch._seen_BT, batch._position_B1)]

    step.answer(asked, draws, record=False)
    before = places()
    with torch.no_grad(), grouped_attention(model):
        step._start(4)
        with Operations() as operations:
            step._step()
    step.answer(asked[::-1], draws, record=False)
    assert "searchsorted" in operations.seen or values == {"temperature": 0.0}
    assert not operations.seen & WAITING
    assert places() == before


def test_what_waits_would_be_seen() -> None:
    with Operations() as operations:
        bool((torch.ones(3) > 0).all())
        torch.tensor([1.0])
    assert operations.seen & WAITING == {"_local_scalar_dense", "lift_fresh"}


def test_models_that_are_not_on_a_gpu_are_not_recorded() -> None:
    assert not recordable(made("llama"))
