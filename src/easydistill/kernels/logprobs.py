"""Log-probabilities of given tokens under a causal language model, in one forward pass.

Shapes: N tokens, D hidden width, V vocabulary, B rows, T positions. Row t predicts token t+1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from easydistill.data.batches import padded
from easydistill.kernels.devices import uses_triton
from easydistill.kernels.linear_logprobs import linear_logprobs
from easydistill.models.flat_rows import flat_rows
from easydistill.models.head import Head, body_of, rows_per_chunk

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision


def completion_logprobs(
    model: Any,
    sequences: Sequence[tuple[list[int], int]],
    pad: int,
    chunk_bytes: int | None,
    *,
    vocabulary: int | None = None,
    with_entropy: bool = True,
    flat: bool = False,
    vision: Vision | None = None,
    images: Sequence[Sequence[str]] = (),
) -> tuple[Tensor, Tensor]:
    """float32 log-probabilities of the tokens from `start` on of each (token ids, start), concatenated; and entropies.

    Logits exist for a slice of rows at a time; with gradients they are recomputed in the backward pass, and there are
    no entropies.

    Args:
        chunk_bytes: memory for a slice of logits; None for what suits the device.
        vocabulary: the distributions are over the first `vocabulary` tokens; None for all that the model has.
        with_entropy: if False, or with gradients, the entropies are zeros.
        flat: as in `completion_states`.
        vision: of a model that sees images.
        images: the digests of each sequence's images; empty if none has any.

    Raises:
        DataError: the ids of a sequence were made for other images.
    """
    hidden_ND, target_N = completion_states(model, sequences, pad, flat=flat, vision=vision, images=images)
    on, head = hidden_ND.device, Head.of(model)
    if (torch.is_grad_enabled() or not with_entropy) and uses_triton(hidden_ND):
        logprobs_N = linear_logprobs(hidden_ND, head, target_N, vocabulary, chunk_bytes)
        return logprobs_N, torch.zeros_like(logprobs_N)
    step = rows_per_chunk(head.weight_VD.shape[0], chunk_bytes, on)
    parts = []
    for at in range(0, len(target_N), step):
        arguments = (hidden_ND[at : at + step], head, target_N[at : at + step])
        if torch.is_grad_enabled():
            parts.append(checkpoint(target_logprobs, *arguments, False, vocabulary, use_reentrant=False))
        else:
            parts.append(target_logprobs(*arguments, with_entropy, vocabulary))
    logprobs_N, entropy_N = torch.cat(parts, dim=1)
    return logprobs_N, entropy_N.detach()


def listed_logprobs(
    model: Any,
    sequences: Sequence[tuple[list[int], int]],
    pad: int,
    k: int,
    chunk_bytes: int | None,
    *,
    vision: Vision | None = None,
    images: Sequence[Sequence[str]] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the tokens of `completion_logprobs`: log-probabilities [N]; the k most probable tokens in the place of each
    [N, k] (all, if there are fewer), and their log-probabilities [N, k]. Without gradients.
    """
    hidden_ND, target_N = completion_states(model, sequences, pad, vision=vision, images=images)
    head = Head.of(model)
    step = rows_per_chunk(head.weight_VD.shape[0], chunk_bytes, hidden_ND.device)
    own: list[Tensor] = []
    ids: list[Tensor] = []
    logprobs: list[Tensor] = []
    for at in range(0, len(target_N), step):
        logprobs_NV = head.logits(hidden_ND[at : at + step]).float().log_softmax(-1)
        own.append(logprobs_NV.gather(1, target_N[at : at + step, None]).squeeze(1))
        top = logprobs_NV.topk(min(k, logprobs_NV.shape[1]), dim=-1)
        ids.append(top.indices)
        logprobs.append(top.values)
    return torch.cat(own), torch.cat(ids), torch.cat(logprobs)


def completion_states(
    model: Any,
    sequences: Sequence[tuple[list[int], int]],
    pad: int,
    *,
    flat: bool = False,
    vision: Vision | None = None,
    images: Sequence[Sequence[str]] = (),
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] that predict the tokens from `start` on of each (token ids, start), and these tokens [N].

    Args:
        flat: compute short rows as one sequence, without padding, where the model takes them (on a CPU, and none that
            sees images). With gradients, `rows_attention` must stay on until the backward pass is done.
        vision: of a model that sees images.
        images: the digests of each sequence's images; empty if none has any.

    Raises:
        DataError: the ids of a sequence were made for other images.
    """
    on = next(model.parameters()).device
    target_N = torch.tensor([token for ids, start in sequences for token in ids[start:]], device=on)
    every = [ids for ids, _ in sequences]
    if flat and vision is None and (rows := flat_rows(every, on)) is not None:
        hidden_ND = rows.hidden(model)
        if hidden_ND is not None:
            before = [
                (number, at - 1) for number, (ids, start) in enumerate(sequences) for at in range(start, len(ids))
            ]
            row_N, token_N = torch.tensor(before, dtype=torch.long).view(-1, 2).unbind(1)
            return hidden_ND.index_select(0, rows.layout.places(row_N, token_N)), target_N
    ids_BT = torch.tensor(padded(every, pad), device=on)
    places = range(1, ids_BT.shape[1])
    keep_BT = torch.tensor([[start <= at < len(ids) for at in places] for ids, start in sequences], device=on)
    seen = _seen(vision, ids_BT, every, images, model)
    hidden_BTD = body_of(model)(input_ids=ids_BT, use_cache=False, **seen).last_hidden_state
    return hidden_BTD[:, :-1][keep_BT], target_N


def _seen(
    vision: Vision | None, ids_BT: Tensor, rows: Sequence[list[int]], images: Sequence[Sequence[str]], model: Any
) -> dict[str, Tensor]:
    """What a model that sees images is given beside the padded ids."""
    if vision is None:
        assert not any(images), "a model of text is never given images"
        return {}
    shown = images or [()] * len(rows)
    return vision.inputs(ids_BT, list(zip(rows, shown, strict=True)), model.dtype)


def target_logprobs(
    hidden_ND: Tensor, head: Head, target_N: Tensor, with_entropy: bool = True, vocabulary: int | None = None
) -> Tensor:
    """[2, N]: log p(target), and the distribution's entropy (or zeros); over the first `vocabulary` tokens."""
    logprobs_NV = head.logits(hidden_ND)[:, :vocabulary].float().log_softmax(-1)
    target_logprob_N = logprobs_NV.gather(1, target_N[:, None]).squeeze(1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1) if with_entropy else torch.zeros_like(target_logprob_N)
    return torch.stack([target_logprob_N, entropy_N])
