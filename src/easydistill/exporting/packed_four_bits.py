"""Reads weights of 4 bits, w = scale · (q − zero), as GPTQ's and AWQ's files hold them, whatever wrote them.

Eight numbers of 4 bits stand in an int32. Shapes: I inputs, O outputs, G groups of inputs.

- GPTQ: `qweight` [I / 8, O], number j of an int32 is input 8i + j; `qzeros` [G, O / 8] hold zero − 1.
- AWQ: `qweight` [I, O / 8], number j of an int32 is output 8o + (0, 2, 4, 6, 1, 3, 5, 7)[j]; `qzeros` [G, O / 8] alike.

Both have `scales` [G, O]; GPTQ may have `g_idx` [I], the group of each input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def layers_of(folder: Path) -> set[str]:
    """Modules whose weights are packed."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name.removesuffix(".qweight") for name in file.keys() if name.endswith(".qweight")}  # noqa: SIM118
    return found


def load_folder(source_config: Any, folder: Path, layout: str) -> Any:
    """The model with float32 weights, in the shape that the student's config gives.

    Raises:
        ModelError: the folder lacks weights, or has some that the model does not know.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from easydistill.errors import ModelError

    stored: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= load_file(path)
    weights: dict[str, Any] = {}
    for name in layers_of(folder):
        parts = {part: stored.pop(f"{name}.{part}", None) for part in ("qweight", "qzeros", "scales", "g_idx")}
        weights[f"{name}.weight"] = unpacked(layout, **parts)
    weights |= {name: weight_X.float() for name, weight_X in stored.items()}
    model = AutoModelForCausalLM.from_config(source_config, dtype=torch.float32)
    found = model.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if source_config.tie_word_embeddings else set()
    if wrong := sorted({*found.missing_keys, *found.unexpected_keys} - tied):
        raise ModelError(f"{folder.name}: what was read back lacks, or does not know, {', '.join(wrong[:3])}")
    model.tie_weights()
    return model.eval()


def unpacked(layout: str, qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None) -> Any:
    """The float32 weight [O, I] of a layer."""
    import torch

    if layout == "awq":
        q_IO, zero_GO = _across(qweight, _AWQ_ORDER), _across(qzeros, _AWQ_ORDER)
    else:
        q_IO = _across(qweight.T.contiguous(), range(8)).T
        zero_GO = _across(qzeros, range(8)) + 1
    inputs, groups = q_IO.shape[0], scales.shape[0]
    group_I = torch.arange(inputs) // (inputs // groups) if g_idx is None else g_idx.long()
    return (scales.float()[group_I] * (q_IO - zero_GO[group_I])).T.contiguous()


def _across(packed_RC: Any, order: Any) -> Any:
    """[R, C] int32 → [R, 8 C], where number j of an int32 goes to place order[j] of its eight."""
    import torch

    shift_8 = 4 * torch.arange(8)
    number_RC8 = (packed_RC.long()[..., None] >> shift_8) & 15
    placed_RC8 = torch.empty_like(number_RC8)
    placed_RC8[..., list(order)] = number_RC8
    return placed_RC8.flatten(-2)
