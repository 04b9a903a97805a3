"""Prompts that a model goes on with together: one forward pass over the prompts, then one per new token of each row.

`generate` copies the whole cache at every token and computes rows that have ended. Here keys and values are written in
place, rows that have ended can leave, and what all prompts begin with is computed once.

Shapes: B rows, V vocabulary, H key heads, D head width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicLayer

from easydistill.models.spread import input_device

if TYPE_CHECKING:
    import torch

SPARE, SPARE_SHARE = 64, 0.25
"""Room for further tokens is made for so many at least, and for this share of those that are there: on a CPU, attention
reads it too."""
SHARED_PREFIX = 8
"""A common beginning of fewer tokens is not worth a forward pass of its own."""


class FilledLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, written in place; the model sees the part that is filled.

    Args:
        rows: of the batch. What is written for one row is the same for all.
        capacity: most tokens of a row.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.is_initialized = False
        self.keys: torch.Tensor
        self.values: torch.Tensor
        self._rows, self._capacity, self._filled, self._width = rows, capacity, 0, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values (B or 1, H, T, D) of new tokens; returns those of all tokens."""
        start, end = self._filled, self._filled + key_states.shape[2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._room(key_states, value_states, end)
        elif end > self._width:
            self._move(self.keys, self.values, end)
        self._keys_BHTD[:, :, start:end] = key_states
        self._values_BHTD[:, :, start:end] = value_states
        self._show(end)
        return (key_states, value_states) if start == 0 else (self.keys, self.values)

    def _room(self, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor, filled: int) -> None:
        """Make room for `filled` tokens of the rows and some more, in tensors like these."""
        import torch

        _, heads, _, width = keys_BHTD.shape
        on = keys_BHTD.device.type
        if torch.is_autocast_enabled(on):
            # Attention would cast everything that is cached, at every token.
            keys_BHTD, values_BHTD = (part.to(torch.get_autocast_dtype(on)) for part in (keys_BHTD, values_BHTD))
        self._width = min(self._capacity, filled + max(SPARE, int(filled * SPARE_SHARE)))
        shape = (self._rows, values_BHTD.shape[1], self._width, values_BHTD.shape[-1])
        if on == "cpu":
            # Token beside token in memory, as the product with queries reads keys. Zeros, as products read all values.
            self._keys_BHTD = keys_BHTD.new_empty(self._rows, heads, width, self._width).transpose(-1, -2)
            self._values_BHTD = values_BHTD.new_zeros(shape)
        else:
            self._keys_BHTD = keys_BHTD.new_empty(self._rows, heads, self._width, width)
            self._values_BHTD = values_BHTD.new_empty(shape)

    def _show(self, filled: int) -> None:
        self._filled = filled
        self.keys = self._keys_BHTD[:, :, :filled]
        self.values = self._values_BHTD[:, :, :filled]

    def keep(self, rows_B: torch.Tensor, first: int = 0) -> None:
        """Drop all but these rows, and of these all before token `first`."""
        # Layers of a model that is spread over devices are on different ones.
        rows_B = rows_B.to(self.keys.device)
        keys_BHTD, values_BHTD = (part[:, :, first:].index_select(0, rows_B) for part in (self.keys, self.values))
        self._rows, self._filled = len(rows_B), self._filled - first
        self._move(keys_BHTD, values_BHTD, self._filled)

    def joined(self, other: FilledLayer, capacity: int) -> FilledLayer:
        """The rows of both, this one's first. The shorter ones are padded before their tokens.

        Args:
            capacity: most tokens of a row.
        """
        filled = max(self._filled, other._filled)
        made = FilledLayer(self._rows + other._rows, capacity)
        made.dtype, made.device, made.is_initialized = self.dtype, self.device, True
        made._room(self.keys, self.values, filled)
        for layer, rows in ((self, slice(None, self._rows)), (other, slice(self._rows, None))):
            start = filled - layer._filled
            for whole_BHTD, part_BHTD in ((made._keys_BHTD, layer.keys), (made._values_BHTD, layer.values)):
                # Not what memory happens to hold: a score that is not a number cannot be masked by adding to it.
                whole_BHTD[rows, :, :start] = 0
                whole_BHTD[rows, :, start:filled] = part_BHTD
        made._show(filled)
        return made

    def _move(self, keys_BHTD: torch.Tensor, values_BHTD: torch.Tensor, tokens: int) -> None:
        """Make room for so many tokens anew, and take over the filled part."""
        self._room(keys_BHTD, values_BHTD, tokens)
        self._keys_BHTD[:, :, : self._filled] = keys_BHTD
        self._values_BHTD[:, :, : self._filled] = values_BHTD
        self._show(self._filled)


class Batch:
    """A model going on with prompts.

    Args:
        model: a causal language model, on its device.
        prompts: token ids of each prompt.
        room: most new tokens of a row.
        capacity: most tokens of a row in the cache; by default those of the longest prompt and `room`.
    """

    def __init__(self, model: Any, prompts: Sequence[list[int]], room: int, *, capacity: int | None = None) -> None:
        import torch

        self._prefix = shared_prefix(prompts)
        rests = [list(prompt[self._prefix :]) for prompt in prompts]
        width = max(map(len, rests))
        self._first = list(prompts[0][: self._prefix])
        on = input_device(model)
        self._ids_BT, seen_BT = padded_left(rests, 0, on)
        ones_BT = torch.ones(len(prompts), self._prefix, dtype=torch.long, device=on)
        self._seen_BT = torch.cat([ones_BT, seen_BT, ones_BT.new_ones(len(prompts), room)], dim=1)
        self._filled = self._prefix + width
        self._position_B1 = self._seen_BT[:, : self._filled].sum(1, keepdim=True) - 1
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._layers = [FilledLayer(len(prompts), capacity or self._filled + room) for _ in range(layers)]
        self._forward = NextLogits(model, Cache(layers=self._layers))

    @property
    def seen(self) -> torch.Tensor:
        """(B, T): 1 for each token so far, 0 for padding."""
        return self._seen_BT[:, : self._filled]

    @property
    def layers(self) -> list[FilledLayer]:
        """What is cached of them."""
        return self._layers

    def begin(self) -> torch.Tensor:
        """Logits (B, V) of each row's first new token."""
        prefix = self._prefix
        if prefix:
            ids_1T = self._ids_BT.new_tensor([self._first])
            self._forward(ids_1T, self._seen_BT[:1, :prefix], _positions(self._seen_BT[:1, :prefix]))
        seen_BT = self._seen_BT[:, : self._filled]
        return self._forward(self._ids_BT, seen_BT, _positions(seen_BT)[:, prefix:])

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) of the tokens after `tokens_B`."""
        self._filled += 1
        self._position_B1 = self._position_B1 + 1
        return self._forward(tokens_B[:, None], self._seen_BT[:, : self._filled], self._position_B1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        rows_B = self._ids_BT.new_tensor(rows)
        self._seen_BT, self._position_B1 = self._seen_BT[rows_B], self._position_B1[rows_B]
        for layer in self._layers:
            layer.keep(rows_B)


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; 0 if they are too few. The last token of a prompt is never among them."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    same = next((at for at in range(most) if first[at] != last[at]), most)
    return same if same >= SHARED_PREFIX else 0


def padded_left(prompts: Sequence[list[int]], pad: int, on: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of prompts, padded before them."""
    import torch

    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=on), torch.tensor(mask, device=on)


def _positions(seen_BT: torch.Tensor) -> torch.Tensor:
    return (seen_BT.cumsum(-1) - 1).clamp(min=0)


class NextLogits:
    """Logits (B, V) of the token after the last, from a model and its cache."""

    def __init__(self, model: Any, cache: Any) -> None:
        self._model, self._cache = model, cache
        # Asks for the signature, which takes as long as a layer of a small model.
        self._last: dict[str, Any] = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    def __call__(self, ids_BT: torch.Tensor, seen_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        out = self._model(
            input_ids=ids_BT,
            attention_mask=seen_BT,
            position_ids=positions_BT,
            past_key_values=self._cache,
            use_cache=True,
            **self._last,
        )
        logits_BV: torch.Tensor = out.logits[:, -1]
        return logits_BV
