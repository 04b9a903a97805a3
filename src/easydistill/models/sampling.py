"""Generating a batch of answers from a model in this process, each row with its own random stream.

Models whose cache is keys and values of whole sequences are decoded here (`decoding/`), as the numbers of a few tokens
show. All others go through transformers' `generate`, in which a logits processor leaves only the drawn token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easydistill.models.draws import SeededSampler, first_above
from easydistill.models.limits import position_limit
from easydistill.models.spread import given_where_it_begins, input_device

if TYPE_CHECKING:
    from easydistill.models.decoding.graphs import DecodeGraphs
    from easydistill.models.structured import SchemaMasks

__all__ = ["Answer", "SeededSampler", "first_above", "generate_batch"]


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the end token, and whether the model ended the answer itself."""

    ids: list[int]
    ended: bool
    end: int | None = None
    """The end token, if there is one."""


@contextlib.contextmanager
def _own_distribution(model: Any) -> Iterator[None]:
    """Let `model` generate from its own probabilities.

    `generate` takes unset options from the model's generation config. A repetition penalty there, as in
    Qwen2.5-Instruct, or suppressed tokens would change the distribution that is sampled from.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = kept


def generate_batch(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    max_new_tokens: int,
    sampler: SeededSampler,
    masks: SchemaMasks | None = None,
    graphs: DecodeGraphs | None = None,
) -> list[Answer]:
    """Answer prompts together, padded on the left.

    Args:
        model: a causal language model, on its device.
        prompts: token ids of each prompt.
        eos_ids: tokens that end an answer.
        max_new_tokens: longest answer.
        sampler: one stream per prompt.
        masks: constrain answers to the schemas of prompts that have one.
        graphs: keeps what is recorded on a CUDA device for further batches; by default nothing is kept.
    """
    context = position_limit(model.config)
    width = max(map(len, prompts))
    room = max_new_tokens if context is None else max(1, min(max_new_tokens, context - width))
    rows = None
    if min(map(len, prompts)) > 0:
        rows = _decoded(model, prompts, eos_ids, room, sampler, masks, graphs)
    if rows is None:
        rows = _by_generate(model, prompts, eos_ids, room, sampler, masks)
    return [_answer(row, eos_ids) for row in rows]


def _decoded(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    room: int,
    sampler: SeededSampler,
    masks: SchemaMasks | None,
    graphs: DecodeGraphs | None,
) -> list[list[int]] | None:
    """New tokens of each prompt, those after an end token without meaning; None if the model needs `generate`."""
    from easydistill.models.decoding.check import decodes
    from easydistill.models.decoding.graphs import DecodeGraphs, recordable
    from easydistill.models.decoding.loop import decode

    if not decodes(model, prompts[0]):
        return None
    # Masks are made on the host from the last tokens.
    if masks is None and recordable(model):
        rows = (graphs or DecodeGraphs()).decode(model, prompts, eos_ids, room, sampler)
        if rows is not None:
            return rows
    return decode(model, prompts, eos_ids, room, sampler, masks)


def _by_generate(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    room: int,
    sampler: SeededSampler,
    masks: SchemaMasks | None,
) -> list[list[int]]:
    """New tokens of each prompt; those after an end token mean nothing."""
    from transformers import GenerationConfig, LogitsProcessorList

    from easydistill.models.decoding.batch import padded_left

    ends = sorted(eos_ids)
    pad = ends[0] if ends else 0
    ids_BT, mask_BT = padded_left(prompts, pad, input_device(model))
    config = GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=ends or None, pad_token_id=pad)
    with _own_distribution(model), given_where_it_begins():
        out_BT = model.generate(
            ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler] if masks is None else [masks, sampler]),
        )
    rows: list[list[int]] = out_BT[:, ids_BT.shape[1] :].tolist()
    return rows


def _answer(row: list[int], eos_ids: frozenset[int]) -> Answer:
    at = next((at for at, token in enumerate(row) if token in eos_ids), None)
    return Answer(row, ended=False) if at is None else Answer(row[:at], ended=True, end=row[at])
