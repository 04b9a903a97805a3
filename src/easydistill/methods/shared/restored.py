"""What is put back: a trimmed vocabulary and settings of a model after training, the state of random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def trim_vocabulary(model: Any, size: int) -> None:
    """Drop the rows after the tokenizer's last token: padding, which differs between models of one family."""
    if model.get_input_embeddings().weight.shape[0] > size:
        model.resize_token_embeddings(size, mean_resizing=False)


@contextlib.contextmanager
def trimmed_vocabulary(model: Any, size: int) -> Iterator[None]:
    """Train without the padding rows, and restore them unchanged afterwards."""
    rows = [values.detach()[size:].clone() for values in _by_token(model)]
    total = model.get_input_embeddings().weight.shape[0]
    trim_vocabulary(model, size)
    yield
    if total > size:
        model.resize_token_embeddings(total, mean_resizing=False)
        with torch.no_grad():
            for values, kept in zip(_by_token(model), rows, strict=True):
                values[size:] = kept.to(values)


def _by_token(model: Any) -> list[Tensor]:
    """The parameters that have one row per vocabulary entry."""
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return [model.get_input_embeddings().weight, head.weight, *([] if bias is None else [bias])]


@contextlib.contextmanager
def kept_settings(model: Any) -> Iterator[None]:
    """Restore the settings that trainers change: TRL the padding token, gradient checkpointing the cache."""
    places = [
        (model.config.get_text_config(), ("pad_token_id", "use_cache")),
        (model.generation_config, ("pad_token_id",)),
    ]
    before = [(place, name, getattr(place, name, None)) for place, names in places for name in names]
    yield
    for place, name, value in before:
        setattr(place, name, value)
    if getattr(model, "is_gradient_checkpointing", False):
        model.gradient_checkpointing_disable()


@dataclass(frozen=True)
class RandomState:
    """The state of the global random generators, which checkpoints hold."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
