"""How large a model is, read from its files' headers without loading anything."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from pathlib import Path

from easydistill.config.models import FreshStudent, ModelsConfig, PrunedStudent
from easydistill.errors import ModelError
from easydistill.models.reference import converted_directory, resolve
from easydistill.models.student import kept_layers

_LAYER = re.compile(r"\.layers\.(\d+)\.")


def parameter_shapes(directory: Path) -> dict[str, int]:
    """Number of values of each tensor in a directory's safetensors files, by name."""
    found: dict[str, int] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size))
        found |= {name: math.prod(item["shape"]) for name, item in header.items() if name != "__metadata__"}
    return found


def model_parameters(reference: str, keep_layers: int | None = None) -> int | None:
    """Parameters of a model; None if its files are not on this machine, or are not safetensors."""
    try:
        source = resolve(reference)
    except ModelError:
        return None
    directory = converted_directory(source) if source.is_gguf else source.path
    if directory is None or not directory.is_dir():
        return None
    by_layer: Counter[int | None] = Counter()
    for name, count in parameter_shapes(directory).items():
        match = _LAYER.search(name)
        by_layer[None if match is None else int(match[1])] += count
    layers = len(by_layer.keys() - {None})
    if keep_layers is not None and keep_layers <= layers:
        return sum(by_layer[layer] for layer in (None, *kept_layers(layers, keep_layers))) or None
    return by_layer.total() or None


def student_parameters(models: ModelsConfig) -> int | None:
    """Parameters of the student that a config describes; None if they cannot be counted cheaply."""
    student = models.student
    if isinstance(student, FreshStudent):
        return None
    if isinstance(student, PrunedStudent):
        return model_parameters(student.from_model, student.keep_layers)
    return model_parameters(student)
