"""A folder as transformers and vLLM load it: config, safetensors, tokenizer, chat template, processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from easydistill.contracts.export_format import Source, Written
from easydistill.errors import ModelError

NUMBERS = ("stored", "bfloat16", "float16", "float32")
LOSSLESS = ("stored", "float32")
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def problem(config: dict[str, Any], number: str) -> tuple[str, str] | None:
    """Every model that is loaded can be written."""
    return None


def write(source: Source, number: str, target: Path) -> Written:
    """Write the model; `stored` keeps the type of number that its files have.

    Raises:
        ModelError: a weight is too large for float16.
    """
    import torch

    from easydistill.models.loading import load_model, stored_dtype
    from easydistill.models.reference import resolve
    from easydistill.models.saving import let_read, make_savable

    name = stored_dtype(resolve(source.directory)) if number == "stored" else number
    dtype = getattr(torch, name)
    model = load_model(source.directory, getattr(torch, stored_dtype(resolve(source.directory))))
    if dtype is torch.float16:
        refuse_overflow(model)
    notes = make_savable(model, source.tokenizer, source.reference)
    model.to(dtype).save_pretrained(target)
    let_read(target)
    source.tokenizer.save_pretrained(target)
    for file in _PROCESSOR:
        if (path := Path(source.directory) / file).is_file():
            shutil.copyfile(path, target / file)
    return Written("", notes, {"stored": name})


def refuse_overflow(model: Any) -> None:
    """
    Raises:
        ModelError: float16 cannot hold a weight.
    """
    import torch

    largest = torch.finfo(torch.float16).max
    for name, weight_X in model.named_parameters():
        if weight_X.numel() and weight_X.detach().abs().max().float() > largest:
            raise ModelError(f"{name} has weights beyond float16's {largest:,.0f}\n    → choose another type of number")


def load(source: Source, target: Path, file: str) -> Any:
    """The model, from the folder alone."""
    import torch

    from easydistill.models.loading import load_model

    return load_model(str(target), torch.float32)


def load_tokenizer(target: Path, file: str) -> Any:
    """The tokenizer, from the folder alone."""
    from easydistill.exporting.tokenizers_read import of_folder

    return of_folder(target)
