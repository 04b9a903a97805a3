"""Rows of tokens as one sequence: no padding, and what all rows begin with computed once. For CPUs.

Chats of one template and system prompt begin alike, and answers to one question do for longer still; with causal
attention the hidden states of a common beginning are those of every row. Layers see a single sequence, in which the
beginning stands first and the rest of each row follows; only attention (`rows_attention.py`) knows of rows.

What an architecture makes of such a sequence cannot be read from its config, so it is tried, by numbers.

Shapes: N tokens of the sequence, B rows, T places of a row, D hidden width.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import masking_utils

from easydistill.models.head import body_of
from easydistill.models.rows_attention import LAYOUT, RowsLayout, rows_attention, shared_beginning

LONGEST = 256
"""Tokens of the longest row. The probabilities of all pairs of a row's tokens are kept for the backward pass; for
longer rows PyTorch's blockwise attention, which keeps none, is as fast."""
SHORTEST_SHARED = 8
"""A common beginning of fewer tokens is not worth the attention of its own."""
_DEVIATION = 0.1
"""Largest deviation, as a share of what the earlier tokens change. Rounding in bfloat16 is a few per cent of it."""
_SEEN = 1e-4
"""The same for what other rows, or chance in training, may change. With products of the same shapes it is next to none,
while a convolution of few tokens, a small part of what context does, is more."""
_known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class FlatRows:
    """Rows as one sequence.

    Args:
        ids_N: the common beginning, then the rest of each row.
        layout: where the rows are in it.
    """

    ids_N: Tensor
    layout: RowsLayout

    @classmethod
    def of(cls, rows: Sequence[Any], own: Sequence[int] | None = None) -> FlatRows:
        """
        Args:
            rows: token ids of each row, as arrays; none is empty.
            own: for each row, the first token that must not be shared; by default only the last one must not be.
        """
        most = min(len(row) - 1 for row in rows)
        shared = shared_beginning(rows, most if own is None else min(most, *own))
        shared = shared if shared >= SHORTEST_SHARED else 0
        ids = np.concatenate([rows[0][:shared], *(row[shared:] for row in rows)]).astype(np.int64)
        return cls(torch.from_numpy(ids), RowsLayout(shared, tuple(len(row) - shared for row in rows)))

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token in its row."""
        shared = self.layout.shared
        return torch.cat([torch.arange(shared), *(torch.arange(size) + shared for size in self.layout.lengths)])

    def hidden(self, model: Any) -> Tensor | None:
        """The last hidden states [N, D] of a model's body; None if the model needs padded rows.

        It also does where one is not finite: a product with zeros takes that from a row's tokens to those before them.
        """
        if not takes_flat_rows(model):
            return None
        hidden_ND = _hidden_of(body_of(model), self)
        return hidden_ND if bool(torch.isfinite(hidden_ND).all()) else None


def flat_rows(rows: Sequence[Any], on: torch.device) -> FlatRows | None:
    """Rows of token ids as one sequence; None on other devices than a CPU, and if one is long."""
    if on.type != "cpu" or max(map(len, rows)) > LONGEST:
        return None
    return FlatRows.of([np.asarray(row) for row in rows])


def flat_hidden(body: Any, ids_1N: Tensor, positions_1N: Tensor, layout: RowsLayout) -> Tensor:
    """The last hidden states [N, D] of rows in one sequence; `rows_attention` must be on."""
    with not_packed():
        out = body(input_ids=ids_1N, position_ids=positions_1N, use_cache=False, **{LAYOUT: layout})
    hidden_1ND: Tensor = out.last_hidden_state
    return hidden_1ND[0]


@contextlib.contextmanager
def not_packed() -> Iterator[None]:
    """Spare transformers the search for packs in positions.

    It looks at the result of that search in every forward pass, for which the CPU would wait for a GPU; and a mask that
    keeps packed rows apart is not wanted of rows in one sequence.
    """
    name = "find_packed_sequence_indices"
    search = getattr(masking_utils, name, None)
    if search is None:
        yield
        return
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, search)


def takes_flat_rows(model: Any) -> bool:
    """Whether a model on a CPU gives rows in one sequence the hidden states that they have alone. Found out once."""
    if model not in _known:
        _known[model] = _suits(model) and _agrees(model)
    return _known[model]


def _suits(model: Any) -> bool:
    if not _computes_on_cpu(model):
        return False
    config = model.config.get_text_config()
    # Rows would share what is dropped of their common beginning.
    drops = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.modules())
    # A window wider than every row is still narrower than a sequence of many, for which transformers then makes a mask.
    windows = any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return not windows and not drops and not getattr(config, "attention_dropout", 0.0)


def _computes_on_cpu(model: Any) -> bool:
    """Also if its weights wait on the disk (see `spread.py`)."""
    places = getattr(model, "hf_device_map", None)
    if places:
        return {str(place) for place in places.values()} <= {"cpu", "disk"}
    return not any(part.device.type != "cpu" or hasattr(part, "device_mesh") for part in model.parameters())


def _agrees(model: Any) -> bool:
    """Rows of several lengths with a common beginning: against each row alone, beside other rows, and in training."""
    limit = min(int(model.config.get_text_config().vocab_size), 1 << 15)
    draw = torch.Generator().manual_seed(0)
    start, *rests = (torch.randint(0, limit, (size,), generator=draw).numpy() for size in (SHORTEST_SHARED, 5, 9, 2))
    rows = [np.concatenate([start, rest]) for rest in rests]
    flat = FlatRows.of(rows)
    changed = rows[1].copy()
    changed[len(start) :] = (rests[1] + 1) % limit
    beside = FlatRows.of([rows[0], changed, rows[2]])
    body, was_training = body_of(model), model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            hidden_ND, beside_ND = _hidden_of(body, flat), _hidden_of(body, beside)
            last_B = torch.tensor([len(row) - 1 for row in rows])
            own_BD = hidden_ND[flat.layout.places(torch.arange(len(rows)), last_B)]
            whole_BD = torch.stack([_last_hidden(body, row) for row in rows])
            alone_BD = torch.stack([_last_hidden(body, row[-1:]) for row in rows])
            model.train()
            training_ND = _hidden_of(body, flat)
    # Bodies of all kinds; whatever one cannot do with a sequence of rows, its rows are padded as ever.
    except (TypeError, IndexError, RuntimeError, ValueError, AttributeError, KeyError):
        return False
    finally:
        model.train(was_training)
    context_B = _distance(alone_BD, whole_BD)
    kept_N = beside.ids_N == flat.ids_N
    seen = max(_distance(beside_ND, hidden_ND)[kept_N].max(), _distance(training_ND, hidden_ND).max())
    agree = (_distance(own_BD, whole_BD) <= _DEVIATION * context_B).all()
    return bool(agree and seen <= _SEEN * context_B.mean())


def _distance(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    return (one_ND - other_ND).float().abs().mean(-1)


def _hidden_of(body: Any, flat: FlatRows) -> Tensor:
    with rows_attention():
        return flat_hidden(body, flat.ids_N[None], flat.positions[None], flat.layout)


def _last_hidden(body: Any, row: Any) -> Tensor:
    with not_packed():
        hidden_1TD: Tensor = body(input_ids=torch.from_numpy(row)[None], use_cache=False).last_hidden_state
    return hidden_1TD[0, -1]
