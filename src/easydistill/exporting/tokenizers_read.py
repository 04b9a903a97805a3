"""What was written of a tokenizer, read back: ids of texts, chat template, end tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer as it was read."""

    encode: Callable[[str], list[int]]
    """Text → ids, without tokens that are not in the text."""
    template: Any
    ends: frozenset[int]


def of_transformers(tokenizer: Any, ends: frozenset[int]) -> ReadTokenizer:
    """The same facts of a tokenizer of transformers."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    return ReadTokenizer(encode, tokenizer.chat_template, ends)


def of_folder(folder: Path) -> ReadTokenizer:
    """Those of a folder that `save_pretrained` wrote."""
    from easydistill.models.loading import eos_ids, load_generation_config, load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    return of_transformers(tokenizer, eos_ids(tokenizer, load_generation_config(str(folder))))
