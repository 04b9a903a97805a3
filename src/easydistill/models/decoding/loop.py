"""Answering a batch of prompts, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.models.decoding.attention import grouped_attention
from easydistill.models.decoding.batch import Batch
from easydistill.models.draws import SeededSampler, draw
from easydistill.models.spread import input_device

if TYPE_CHECKING:
    from easydistill.models.sampling import Allowed

ENDED_SHARE = 0.2
"""When this share of the rows has ended they leave the batch, which copies the cache of the others."""


def decode(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    room: int,
    sampler: SeededSampler,
    masks: Allowed | None,
) -> list[list[int]]:
    """New tokens of each prompt, with the end token if there is one.

    Args:
        room: most new tokens of a row.
    """
    import torch

    on = input_device(model)
    uniform_BN, heat_B1 = sampler.uniforms(room), sampler.temperatures()
    if on.type == "mps":
        uniform_BN = uniform_BN.float()
    uniform_BN, heat_B1 = uniform_BN.to(on), heat_B1.to(on)
    written: list[list[int]] = [[] for _ in prompts]
    rows, ended = list(range(len(prompts))), set[int]()
    with torch.no_grad(), grouped_attention(model):
        batch = Batch(model, prompts, room)
        logits_BV = batch.begin()
        for step in range(room):
            if masks is not None:
                logits_BV = masks.applied(logits_BV, [written[row][-1] if written[row] else None for row in rows])
            tokens_B = draw(logits_BV, uniform_BN[:, step : step + 1], heat_B1, sampler.rule)
            for row, token in zip(rows, tokens_B.tolist(), strict=True):
                # A row that has ended stays for a while; what it goes on with is no answer.
                if row not in ended:
                    written[row].append(token)
                    if token in eos_ids:
                        ended.add(row)
            left = [place for place, row in enumerate(rows) if row not in ended]
            if not left or step == room - 1:
                break
            if len(left) <= (1 - ENDED_SHARE) * len(rows):
                batch.keep(left)
                rows = [rows[place] for place in left]
                places_B = tokens_B.new_tensor(left)
                tokens_B, uniform_BN, heat_B1 = tokens_B[places_B], uniform_BN[places_B], heat_B1[places_B]
                if masks is not None:
                    masks.keep(left)
            logits_BV = batch.step(tokens_B)
    return written
