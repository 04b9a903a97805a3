"""Triton's kernels against the plain PyTorch ones, on a problem that takes a moment."""

from __future__ import annotations

import torch
from torch import Tensor

from easydistill.kernels.head_pass import HeadPass
from easydistill.kernels.rows import rows_class
from easydistill.models.head import Head

ROWS, WIDTH, VOCABULARY, LISTED = 5, 16, 5003, 3


def largest_error(device: torch.device) -> float:
    """The largest error of Triton's kernels in bfloat16, with PyTorch's in float64 on the CPU as reference.

    It is that of log-probabilities in nats, and of gradients relative to their length. Rounding makes it about 0.004.
    """
    return max(_error(device, listed=False), _error(device, listed=True))


def _error(device: torch.device, *, listed: bool) -> float:
    """Of cross-entropy, and of a distillation loss with all that a head may have."""
    reference = _results(torch.device("cpu"), torch.float64, listed=listed, raw=False)
    found = _results(device, torch.bfloat16, listed=listed, raw=True)
    errors = []
    for name, wanted in reference.items():
        gap = (found[name].cpu().double() - wanted).abs()
        errors.append(gap.max() if name.startswith("logprobs") else gap.norm() / wanted.norm())
    return float(torch.stack(errors).max())


def _results(device: torch.device, dtype: torch.dtype, *, listed: bool, raw: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def quarters(*shape: int) -> Tensor:
        """Numbers whose few products are exact in bfloat16."""
        return (torch.randint(-4, 5, shape, generator=generator) / 4).to(device, dtype)

    hidden_ND, weight_VD, bias_V = quarters(ROWS, WIDTH), quarters(VOCABULARY, WIDTH), quarters(VOCABULARY)
    ids_NC = torch.randint(VOCABULARY - 50, (ROWS, LISTED), generator=generator).to(device)
    numbers_NC = torch.rand(ROWS, LISTED + 2, generator=generator).to(device)
    head = Head(weight_VD, bias_V, 0.5, 8.0) if listed else Head(weight_VD)
    head_pass = HeadPass(hidden_ND, head, (True, True, listed), None, raw)
    numbers_NC = numbers_NC.to(head_pass.exact)
    shape = (2.0, VOCABULARY - 50) if listed else (1.0, None)
    found = {}
    for part in head_pass.slices():
        rows = rows_class(raw)(head_pass, part, *shape)
        found["logprobs"], found["logprobs at the temperature"] = rows.at(ids_NC)
        if listed:
            rows.propagate(ids_NC, numbers_NC[:, 2:], numbers_NC[:, :1], numbers_NC[:, 1:2])
        else:
            rows.propagate_labels(ids_NC[:, :1])
    names = ("hidden states", "weight", "bias")
    return found | {name: made for name, made in zip(names, head_pass.gradients, strict=True) if made is not None}
