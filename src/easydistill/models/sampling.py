"""Generating a batch of answers from a model in this process, each row with its own random stream.

Models whose cache is keys and values of whole sequences are decoded here (`decoding/`), as the numbers of a few tokens
show. All others go through transformers' `generate`, in which a logits processor leaves only the drawn token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from easydistill.models.draws import SeededSampler, first_above
from easydistill.models.limits import position_limit
from easydistill.models.spread import given_where_it_begins, input_device

if TYPE_CHECKING:
    import torch

    from easydistill.models.decoding.graphs import DecodeGraphs
    from easydistill.models.multimodal import Vision
    from easydistill.models.structured import SchemaMasks

__all__ = ["Answer", "SeededSampler", "first_above", "generate_batch"]


@dataclass(frozen=True)
class Answer:
    """Generated token ids without the end token, and whether the model ended the answer itself."""

    ids: list[int]
    ended: bool
    end: int | None = None
    """The end token, if there is one."""


Processor = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Token ids (B, T) and logits (B, V) → something of the batch's rows."""


class Allowed(Protocol):
    """Takes tokens out of distributions, as `SchemaMasks`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor: ...

    def applied(self, logits_BV: torch.Tensor, drawn: Sequence[int | None]) -> torch.Tensor: ...

    def keep(self, rows: Sequence[int]) -> None: ...


class WithoutTokens:
    """Takes some tokens out of every distribution, and what schemas take out besides."""

    def __init__(self, tokens: Sequence[int], masks: Allowed | None = None) -> None:
        self._tokens, self._masks = list(tokens), masks

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._without(scores if self._masks is None else self._masks(input_ids, scores))

    def applied(self, logits_BV: torch.Tensor, drawn: Sequence[int | None]) -> torch.Tensor:
        return self._without(logits_BV if self._masks is None else self._masks.applied(logits_BV, drawn))

    def _without(self, logits_BV: torch.Tensor) -> torch.Tensor:
        import torch

        tokens = torch.tensor(self._tokens, device=logits_BV.device)
        return logits_BV.index_fill(-1, tokens, -torch.inf)

    def keep(self, rows: Sequence[int]) -> None:
        if self._masks is not None:
            self._masks.keep(rows)


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
    vision: Vision | None = None,
    images: Sequence[Sequence[str]] | None = None,
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
        vision: of a model that sees images; it then writes no placeholders of any.
        images: the digests of each prompt's images, whose placeholders are expanded in the prompt.
    """
    context = position_limit(model.config)
    width = max(map(len, prompts))
    room = max_new_tokens if context is None else max(1, min(max_new_tokens, context - width))
    allowed: Allowed | None = masks
    if vision is not None and vision.processor.reserved_ids:
        allowed = WithoutTokens(vision.processor.reserved_ids, masks)
    rows, seen = None, None
    if images is not None and any(images):
        assert vision is not None, "a model of text is never given images"
        shown = list(zip(prompts, images, strict=True))
        seen = partial(vision.inputs, rows=shown, dtype=model.dtype)
    elif min(map(len, prompts)) > 0:
        rows = _decoded(model, prompts, eos_ids, room, sampler, allowed, graphs)
    if rows is None:
        rows = by_generate(model, prompts, eos_ids, room, [sampler] if allowed is None else [allowed, sampler], seen)
    return [_answer(row, eos_ids) for row in rows]


def _decoded(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    room: int,
    sampler: SeededSampler,
    masks: Allowed | None,
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


def by_generate(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    room: int,
    processors: Sequence[Processor],
    seen: Callable[[torch.Tensor], dict[str, torch.Tensor]] | None = None,
    ended: Processor | None = None,
) -> list[list[int]]:
    """New tokens of each prompt by transformers' `generate`; those after an end token mean nothing.

    Args:
        room: most new tokens of a row.
        processors: applied to the logits (B, V) one after the other, given the ids so far (B, T). The last one leaves
            one token of each row.
        seen: what the model is given beside the padded ids of the prompts.
        ended: which rows have ended, as (B) booleans, beside those with an end token; called as processors are.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

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
            **({} if seen is None else seen(ids_BT)),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=None if ended is None else StoppingCriteriaList([ended]),
        )
    rows: list[list[int]] = out_BT[:, ids_BT.shape[1] :].tolist()
    return rows


def _answer(row: list[int], eos_ids: frozenset[int]) -> Answer:
    at = next((at for at, token in enumerate(row) if token in eos_ids), None)
    return Answer(row, ended=False) if at is None else Answer(row[:at], ended=True, end=row[at])
