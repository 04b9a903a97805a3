"""Drawing the next token of rows that each have sampling settings of their own.

Shapes: B rows, V vocabulary, K rows whose log-probabilities are told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from easydistill.models.draws import DrawRule, draw
from easydistill.serving.rows import Row, Scored

if TYPE_CHECKING:
    from torch import Tensor


def draw_tokens(logits_BV: Tensor, rows: Sequence[Row], reserved: Sequence[int] = ()) -> Tensor:
    """The next token (B) of each row, with which the rows go on.

    Rows that are over are given any token, and are not told of it.

    Args:
        reserved: tokens that are never drawn.
    """
    places = [place for place, row in enumerate(rows) if not row.over]
    tokens_B = _drawn(_allowed(logits_BV, rows, places, reserved), rows, places)
    found = tokens_B.tolist()
    scored = _scored(logits_BV, rows, places, found)
    for place in places:
        rows[place].take(found[place], scored.get(place))
    return tokens_B


def _allowed(logits_BV: Tensor, rows: Sequence[Row], places: Sequence[int], reserved: Sequence[int]) -> Tensor:
    """The logits, −inf for tokens that may not be drawn."""
    masked = [place for place in places if rows[place].masks is not None]
    if not masked and not reserved:
        return logits_BV
    logits_BV = logits_BV.clone()
    if reserved:
        logits_BV[:, list(reserved)] = -torch.inf
    for place in masked:
        masks, last = rows[place].masks, rows[place].last
        assert masks is not None
        logits_BV[place : place + 1] = masks.applied(logits_BV[place : place + 1], [last])
    return logits_BV


def _drawn(logits_BV: Tensor, rows: Sequence[Row], places: Sequence[int]) -> Tensor:
    alike: dict[DrawRule, list[int]] = defaultdict(list)
    for place in places:
        sampling = rows[place].sampling
        greedy = sampling.temperature == 0
        alike[DrawRule("greedy") if greedy else DrawRule("drawn", sampling.top_p, sampling.top_k)].append(place)
    on = logits_BV.device
    tokens_B = torch.zeros(len(rows), dtype=torch.long, device=on)
    exact = torch.float32 if on.type == "mps" else torch.float64
    for rule, chosen in alike.items():
        uniforms = [[0.0 if rule.kind == "greedy" else rows[place].stream.random()] for place in chosen]
        uniform_B1 = torch.tensor(uniforms, dtype=torch.float64).to(on, exact)
        heat_B1 = torch.tensor([[rows[place].sampling.temperature] for place in chosen], dtype=torch.float32).to(on)
        own_BV = logits_BV if len(chosen) == len(rows) else logits_BV[torch.tensor(chosen, device=on)]
        tokens_B[torch.tensor(chosen, device=on)] = draw(own_BV, uniform_B1, heat_B1, rule)
    return tokens_B


def _scored(logits_BV: Tensor, rows: Sequence[Row], places: Sequence[int], tokens: Sequence[int]) -> dict[int, Scored]:
    """The log-probabilities of the rows that want them, under the model's own distribution."""
    wanted = [place for place in places if rows[place].sampling.alternatives is not None]
    if not wanted:
        return {}
    logprobs_KV = logits_BV[torch.tensor(wanted, device=logits_BV.device)].float().log_softmax(-1).cpu()
    found: dict[int, Scored] = {}
    for logprobs_V, place in zip(logprobs_KV, wanted, strict=True):
        top = logprobs_V.topk(rows[place].sampling.alternatives or 0)
        alternatives = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        found[place] = Scored(tokens[place], float(logprobs_V[tokens[place]]), alternatives)
    return found
