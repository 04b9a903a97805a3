"""A model → a GGUF file. One tensor at a time is rounded, so memory holds the model once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easydistill.contracts.export_format import Source, Written
from easydistill.errors import MissingExtra, ModelError
from easydistill.exporting.formats.safetensors import refuse_overflow
from easydistill.exporting.gguf_architectures import ARCHITECTURES, Architecture
from easydistill.exporting.gguf_numbers import TYPES, as_bytes, byte_shape, type_of
from easydistill.exporting.gguf_rotation import FACTORS, add_rotation


def write_file(source: Source, number: str, path: Path) -> Written:
    """Write the file. The report is told how many tensors have which type of number.

    Raises:
        MissingExtra: the package gguf is not installed.
        ModelError: the architecture, a tensor, or the kind of tokenizer is not known.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra("train", "Writing GGUF files") from None
    import numpy as np
    import torch

    from easydistill.exporting.gguf_tokenizer import add_tokenizer
    from easydistill.models.loading import load_model, stored_dtype
    from easydistill.models.reference import resolve

    model = load_model(source.directory, getattr(torch, stored_dtype(resolve(source.directory))))
    if number not in {"f32", "bf16"}:
        # Scales of blocks are float16 too.
        refuse_overflow(model)
    architecture = ARCHITECTURES[type(model).__name__]
    tensors = dict(_tensors(model, architecture))
    writer = gguf.GGUFWriter(path, architecture.name)
    _add_settings(writer, source.config, architecture, number)
    factors = add_rotation(writer, source.config, _head_width(source.config))
    if factors is not None:
        tensors[FACTORS] = torch.from_numpy(factors)
    notes, before = add_tokenizer(writer, source, model.get_input_embeddings().num_embeddings)
    layers, kinds, narrow = source.config.num_hidden_layers, {}, []
    for name, weight_X in tensors.items():
        shape = tuple(weight_X.shape)
        kinds[name], is_narrow = type_of(number, name, shape, layers)
        narrow += [name] if is_narrow else []
        in_bytes = byte_shape(shape, kinds[name])
        writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), raw_dtype=kinds[name])
    _write(writer, tensors, kinds, source.config, architecture)
    if narrow:
        widths = sorted({tensors[name].shape[-1] for name in narrow})
        words = f"{len(narrow)} of {len(tensors)} tensors have rows of {', '.join(map(str, widths))} numbers, which "
        notes.append(f"{words}are not whole blocks of {number}; their numbers are of a larger type")
    return Written(path.name, notes, {"tensors": dict(Counter(kind.name for kind in kinds.values()))}, before)


def _tensors(model: Any, architecture: Architecture) -> Iterator[tuple[str, Any]]:
    """The model's weights under their names in the file; a shared output layer is left out.

    Raises:
        ModelError: one of them is not known.
    """
    tied = model.config.tie_word_embeddings
    for name, weight_X in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        known = architecture.tensor(name)
        if known is None:
            problem = f"{type(model).__name__}: its tensor {name} has no known name in GGUF"
            raise ModelError(f"{problem}\n    → export it as safetensors")
        yield known, weight_X


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_settings(writer: Any, config: Any, architecture: Architecture, number: str) -> None:
    """The model's dimensions, as llama.cpp names them."""
    from gguf import GGML_QUANT_VERSION

    heads, width = config.num_attention_heads, _head_width(config)
    writer.add_name("student")
    writer.add_file_type(TYPES[number].number)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if architecture.full_every:
        writer.add_sliding_window(config.sliding_window)
    if architecture.name == "gemma2":
        writer.add_attn_logit_softcapping(float(config.attn_logit_softcapping))
        writer.add_final_logit_softcapping(float(config.final_logit_softcapping))


def _write(
    writer: Any, tensors: Mapping[str, Any], kinds: Mapping[str, Any], config: Any, architecture: Architecture
) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # `write_tensor_data` pads what stands before it.
    for name, weight_X in tensors.items():
        heads = _heads(name, config) if architecture.interleaved else 0
        if heads:
            weight_X = interleaved(weight_X, heads)
        if architecture.norms_from_one and name.endswith("norm.weight"):
            weight_X = weight_X.float() + 1
        writer.write_tensor_data(as_bytes(weight_X.detach().float().numpy(), kinds[name]))
    writer.close()


def _heads(name: str, config: Any) -> int:
    """The heads of a query's or key's projection; 0 of other tensors."""
    if ".attn_q." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".attn_k." in name else 0


def interleaved(weight_X: Any, heads: int) -> Any:
    """The rows of a projection so that the two that are rotated together are neighbours.

    transformers rotates row i of a head with row i + half; llama.cpp's `llama` rotates row 2i with row 2i + 1.

    Args:
        weight_X: [heads × head_dim, D] or [heads × head_dim].
    """
    rest = weight_X.shape[1:]
    by_half = weight_X.reshape(heads, 2, -1, *rest)
    return by_half.transpose(1, 2).reshape(weight_X.shape)
