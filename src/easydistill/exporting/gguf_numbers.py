"""The types of number of GGUF files: which tensor has which, and rounding to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Rule = Callable[[str, int, int], str]


@dataclass(frozen=True)
class FileType:
    """A type of file."""

    number: int
    """`general.file_type`."""
    rule: Rule
    """(name of a matrix, its layer or −1, number of layers) → type of its numbers."""


def _all(kind: str) -> Rule:
    return lambda name, layer, layers: kind


def _q4_k_m(name: str, layer: int, layers: int) -> str:
    """4 bits, and 6 where errors cost most: the output layer, and values and the way down in the outer layers and every
    third of the others, as llama.cpp's recipe has it."""
    if layer < 0:
        return "Q6_K"
    costly = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if costly and (".attn_v." in name or ".ffn_down." in name) else "Q4_K"


TYPES: Mapping[str, FileType] = {
    "f16": FileType(1, _all("F16")),
    "q8_0": FileType(7, _all("Q8_0")),
    "q4_k_m": FileType(15, _q4_k_m),
    "f32": FileType(0, _all("F32")),
    "bf16": FileType(32, _all("BF16")),
}
"""By the name after `gguf:`."""
_INSTEAD = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q5_0": "F16", "Q8_0": "F16"}
"""What a matrix gets whose rows are not whole blocks, as in llama.cpp."""


def type_of(number: str, name: str, shape: tuple[int, ...], layers: int) -> tuple[Any, bool]:
    """(the type of a tensor's numbers, whether it is the one that its rows are too narrow for).

    Norms and biases stay float32, as llama.cpp wants them.

    Args:
        name: in the file.
        shape: rows and columns.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2:
        return GGMLQuantizationType.F32, False
    layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
    wanted = kind = TYPES[number].rule(name, layer, layers)
    while shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
        kind = _INSTEAD[kind]
    return GGMLQuantizationType[kind], kind != wanted


def byte_shape(shape: tuple[int, ...], kind: Any) -> tuple[int, ...]:
    """The shape of a tensor as bytes."""
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return (*shape[:-1], shape[-1] // block * size)


def as_bytes(weight_X: Any, kind: Any) -> Any:
    """A float32 array of numpy as the bytes (uint8) of a type of number."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    from easydistill.exporting.k_quants import q4_k, q6_k

    own = {GGMLQuantizationType.Q4_K: q4_k, GGMLQuantizationType.Q6_K: q6_k}
    if kind in own:
        return own[kind](weight_X)
    return np.ascontiguousarray(quants.quantize(np.ascontiguousarray(weight_X), kind)).view(np.uint8)
