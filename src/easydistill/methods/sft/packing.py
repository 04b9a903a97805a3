"""Whether packed rows stay apart in a model: decided by numbers, before the first step, and before anything is paid
with a miniature of the student.

Rows are kept apart by their positions alone, and what an architecture makes of them cannot be read from its config:
convolutions (LFM2), recurrent states (Mamba, RWKV), positions counted from the mask (OPT) or from the index (ALiBi,
attention in chunks) take no notice. So two packed rows must have the logits that each has alone, and the second one
must not change when the first one does.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from easydistill.config.models import ModelsConfig
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.methods.sft.batching import BOUNDS, TokenRow, collate
from easydistill.models.head import Head, body_of
from easydistill.models.limits import Limits, student_config
from easydistill.models.miniature import miniature

_ROW = 24
"""Tokens of a row; more than any convolution's kernel has."""
_APART = 1e-5
"""Relative to the logits' deviation: a change of the first row may move the second by no more (rounding: 0)."""
_ALONE = {torch.float32: 1e-2, torch.bfloat16: 1e-1, torch.float16: 1e-1}
"""The same for a packed row against itself alone, whose sums are in another order, by the dtype of the computation."""
_CLEARLY = 1e-3
"""What a random miniature must exceed of `_APART` to be refused for; in doubt the student itself is asked."""
_CHUNK = 64
"""Tokens of a chunk in a miniature whose attention is in chunks."""

Collate = Callable[[Sequence[list[TokenRow]], int], Mapping[str, Any]]


def packing_issues(models: ModelsConfig, max_length: int) -> list[ConfigIssue]:
    """Why a student's rows cannot be packed, tried with a tiny random model of its architecture; nothing if they can,
    or if no such model could be made: then the student is tried before its first step.

    Raises:
        ModelError: the student's config cannot be read.
    """
    config = student_config(models)
    chunk = getattr(config, "attention_chunk_size", None)
    if isinstance(chunk, int) and chunk > _CHUNK:
        config = copy.deepcopy(config)
        config.attention_chunk_size = _CHUNK
        # As with the student, packs go beyond a chunk or they do not.
        max_length = 2 * _CHUNK if max_length > chunk else _CHUNK
    model = miniature(config, trust_remote_code=models.trust_remote_code)
    if model is None:
        return []
    try:
        check_packing(model, max_length, apart=_CLEARLY)
    except ConfigError as error:
        return list(error.issues)
    return []


def check_packing(
    model: Any,
    max_length: int,
    collated: Collate = collate,
    switch: Callable[[], object] = lambda: None,
    apart: float = _APART,
) -> None:
    """Check that rows packed as the trainer packs them do not see each other.

    Args:
        max_length: of a pack; attention in chunks shorter than that is tried across a chunk's end.
        collated: makes a micro-batch of packs and a padding token, as the trainer does.
        switch: called once the rows' logits alone are known, to let the model attend otherwise from then on.
        apart: by how much the second row's logits may move with the first row, in deviations.

    Raises:
        ConfigError: they do, or the architecture takes no positions.
    """
    first, second, other = _rows(model, max_length)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = [_logits(model, [row], collate) for row in (first, second)]
            switch()
            packed_TV = _logits(model, [first, second], collated)
            changed_TV = _logits(model, [other, second], collated)
    except (TypeError, IndexError, RuntimeError, ValueError) as error:
        raise _refused(model, f"it fails on packed rows: {' '.join(str(error).split())[:200]}") from error
    finally:
        model.train(was_training)
    start = len(first.ids)
    scale = float(torch.cat(alone).std()) or 1.0
    seen = float((packed_TV[start:] - changed_TV[start:]).abs().max()) / scale
    moved = float((packed_TV - torch.cat(alone)).abs().max()) / scale
    if not seen <= apart:
        raise _refused(model, f"a packed row sees the one before it (its logits move by {seen:.2g} deviations)")
    if not moved <= _ALONE.get(_dtype(model), _ALONE[torch.float32]):
        raise _refused(model, f"a packed row has other logits than alone (by {moved:.2g} deviations)")


def _refused(model: Any, problem: str) -> ConfigError:
    hint = "set training.packing=false; group_by_length, which is on by default, saves most of the padding"
    return ConfigError(ConfigIssue("config", "training.packing", f"{type(model).__name__}: {problem}", hint))


def _rows(model: Any, max_length: int) -> tuple[TokenRow, TokenRow, TokenRow]:
    """Two rows, and a third one that could stand in place of the first, with other tokens."""
    config = model.config.get_text_config()
    limits = Limits.of(model)
    length = max(2, min(_ROW, limits.within(_ROW * 2) // 2))
    lengths = [length, length, length]
    chunk = getattr(config, "attention_chunk_size", None)
    if isinstance(chunk, int) and length < chunk < max_length:
        # The second row crosses the end of a chunk.
        lengths = [chunk - length // 2, length, chunk - length // 2]
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, limits.tokens or 2, (size,), generator=draw).tolist() for size in lengths]
    first, second, other = (TokenRow(str(n), row, [True] * len(row)) for n, row in enumerate(ids))
    return first, second, other


def _dtype(model: Any) -> torch.dtype:
    """The dtype in which the model computes."""
    weight = next(model.parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _logits(model: Any, rows: list[TokenRow], collated: Collate) -> Tensor:
    """float32 logits [T, V] of a pack, computed as the trainer does."""
    on = next(model.parameters()).device
    made = collated([rows], 0)
    batch = {name: made[name] for name in ("input_ids", "position_ids", *BOUNDS) if name in made}
    batch = {name: value.to(on) if isinstance(value, Tensor) else value for name, value in batch.items()}
    hidden_BTD = body_of(model)(**batch, use_cache=False).last_hidden_state
    return Head.of(model).logits(hidden_BTD[0]).float()
