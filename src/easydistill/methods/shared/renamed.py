"""Checkpoints whose weights have other names than the model's parameters.

`save_pretrained` writes some architectures under the names of their first release: LLaVA, Qwen2.5-VL and Gemma3 among
those that see, and mixtures of experts. transformers' Trainer takes the names in the file for the model's own, loads
nothing, and goes on with a warning: the training would start anew with the optimiser of a trained model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from easydistill.errors import ModelError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_renamed(model: Any, checkpoint: Path) -> bool:
    """Load a checkpoint's weights by transformers' own conversion, if its names are not the model's.

    Returns:
        Whether they were loaded; if not, the names are the model's, or there are no weights of a whole model.

    Raises:
        ModelError: the weights are of another model.
    """
    names = _names(checkpoint)
    if not names or names <= model.state_dict().keys():
        return False
    # The widest type of all: a model's parts may have different ones, and `model.dtype` is that of its first.
    widest = max((value.dtype for value in model.parameters() if value.is_floating_point()), key=lambda t: t.itemsize)
    saved = type(model).from_pretrained(checkpoint, dtype=widest)
    try:
        model.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"{checkpoint}: these are not the weights of this student: {str(error).splitlines()[0]}\n"
            "    → start the run in a new output_dir"
        ) from error
    return True


def _names(checkpoint: Path) -> frozenset[str]:
    from safetensors import safe_open

    if (checkpoint / _WHOLE).is_file():
        with safe_open(checkpoint / _WHOLE, framework="pt") as file:
            return frozenset(file.keys())
    if (checkpoint / _INDEX).is_file():
        return frozenset(json.loads((checkpoint / _INDEX).read_text(encoding="utf-8"))["weight_map"])
    return frozenset()
