"""How large a model is, and of what shape, read from its files' headers and config without loading anything."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.config.models import FreshStudent, ModelsConfig, PrunedStudent
from easydistill.errors import ModelError
from easydistill.models.reference import converted_directory, resolve
from easydistill.models.student import kept_layers

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_TOWER = re.compile(r"(?:^|\.)(?:vision|visual|image|audio)")
"""In the names of what is not the language model's."""


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
    if directory is not None and directory.is_dir():
        counts = parameter_shapes(directory)
    elif source.is_gguf and source.path is not None:
        counts = _gguf_counts(source.path)
    else:
        return None
    by_layer: Counter[int | None] = Counter()
    for name, count in counts.items():
        match = None if _TOWER.search(name) else _LAYER.search(name)
        by_layer[None if match is None else int(match[1])] += count
    layers = len(by_layer.keys() - {None})
    if keep_layers is not None and keep_layers <= layers:
        return sum(by_layer[layer] for layer in (None, *kept_layers(layers, keep_layers))) or None
    return by_layer.total() or None


def student_parameters(models: ModelsConfig) -> int | None:
    """Parameters of the student that a config describes; None if they cannot be counted cheaply."""
    student = models.student
    if isinstance(student, FreshStudent):
        shape = student_shape(models)
        return None if shape is None else shape.parameters
    if isinstance(student, PrunedStudent):
        return model_parameters(student.from_model, student.keep_layers)
    return model_parameters(student)


@dataclass(frozen=True)
class ModelShape:
    """The measures of a dense decoder with a gated MLP."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    key_width: int
    """Width of the keys of all heads."""
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""
    heads: int = 0
    """Of queries."""


def student_shape(models: ModelsConfig) -> ModelShape | None:
    """The shape of the student that a config describes; None if its files do not tell."""
    student = models.student
    if isinstance(student, FreshStudent):
        size = (
            student.vocab_size or student.config.get("vocab_size") or _vocabulary(student.tokenizer or models.teacher)
        )
        return _shape({**student.config, "vocab_size": size}, None, None)
    reference = student.from_model if isinstance(student, PrunedStudent) else student
    parameters = student_parameters(models)
    found = _config_values(reference)
    if found is None:
        return None
    # Without weights on this machine they are counted from the config.
    return _shape(found, parameters, student.keep_layers if isinstance(student, PrunedStudent) else None)


def _vocabulary(reference: str | None) -> int | None:
    """Rows of a model's embedding: a new student with its tokenizer has about as many."""
    values = None if reference is None else _config_values(reference)
    return None if values is None else values.get("vocab_size")


def _config_values(reference: str) -> dict[str, Any] | None:
    try:
        source = resolve(reference)
    except ModelError:
        return None
    directory = converted_directory(source) if source.is_gguf else source.path
    path = None if directory is None else directory / "config.json"
    if path is None or not path.is_file():
        return gguf_values(source.path) if source.is_gguf and source.path is not None else None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    inner = found.get("text_config")
    # A tied head is stated outside of the text's part by some families.
    return {**found, **inner} if isinstance(inner, dict) else found


_GGUF_NAMES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


def gguf_values(path: Path) -> dict[str, Any] | None:
    """A model's measures from a GGUF file that has not been converted yet, by the names of transformers' configs."""
    return _read_gguf(path)[0] if path.is_file() else None


def _gguf_counts(path: Path) -> dict[str, int]:
    """Parameters of each tensor of a GGUF file that has not been converted yet, layers as `model.layers.N`."""
    return _read_gguf(path)[1] if path.is_file() else {}


@functools.cache
def _read_gguf(path: Path) -> tuple[dict[str, Any] | None, dict[str, int]]:
    """What `gguf_values` and `_gguf_counts` tell. A reader parses the whole vocabulary, which takes seconds."""
    if importlib.util.find_spec("gguf") is None:
        return None, {}
    from gguf import GGUFReader

    reader = GGUFReader(path)
    counts = {
        tensor.name.replace("blk.", "model.layers.", 1): int(tensor.n_elements)
        for tensor in reader.tensors
        if not tensor.name.startswith("rope_")
    }
    architecture = reader.get_field("general.architecture")
    embedding = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if architecture is None or embedding is None:
        return None, counts
    prefix = architecture.contents()
    fields = {name: reader.get_field(f"{prefix}.{key}") for name, key in _GGUF_NAMES.items()}
    found: dict[str, Any] = {name: int(field.contents()) for name, field in fields.items() if field is not None}
    tied = "output.weight" not in counts
    return {**found, "vocab_size": int(embedding.shape[-1]), "tie_word_embeddings": tied}, counts


def _shape(values: Mapping[str, Any], parameters: int | None, layers: int | None) -> ModelShape | None:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if not all(isinstance(values.get(name), int) for name in names):
        return None
    hidden, intermediate, all_layers, heads, vocabulary = (int(values[name]) for name in names)
    layers = layers or all_layers
    head_width = values.get("head_dim") or hidden // heads
    key_width = (values.get("num_key_value_heads") or heads) * head_width
    tied = bool(values.get("tie_word_embeddings", False))
    query_width = heads * head_width
    per_layer = 2 * hidden * (query_width + key_width) + 3 * hidden * intermediate + 2 * hidden
    counted = vocabulary * hidden * (1 if tied else 2) + layers * per_layer + hidden
    return ModelShape(parameters or counted, layers, hidden, intermediate, key_width, vocabulary, tied, heads)
