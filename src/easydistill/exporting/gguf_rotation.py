"""Rotary embeddings → GGUF metadata, and back.

llama.cpp rotates pair i of a head by position · theta^(−2i/D) / factor_i. What it knows of scaling: `linear` (one
factor), `yarn` (factors between 1 and the scaling's own, by how often a pair turns within the original length, and
scores that are scaled too; arXiv:2309.00071), and for its architecture `llama` a tensor `rope_freqs.weight` [D / 2] of
factors, in which Llama 3's scaling is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easydistill.errors import ModelError

FACTORS = "rope_freqs.weight"
_KINDS = ("default", "linear", "yarn", "llama3")
_TOLERANCE = 1e-4
"""Relative difference of frequencies, which are float32 on both sides."""


def kinds_of(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rotary settings of a config.json by kind of layer; one entry with an empty name where all have the same."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, Mapping) for value in settings.values()):
        return {name: value for name, value in settings.items() if value is not None}
    return {"": settings}


def problem_of(settings: Mapping[str, Any], architecture: str) -> str | None:
    """What of rotary settings the file of an architecture has no place for."""
    kind = settings.get("rope_type", settings.get("type", "default"))
    known = _KINDS if architecture == "llama" else _KINDS[:-1]
    if kind not in known:
        return f"rotary scaling {kind!r} (known are {', '.join(known[1:])})"
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        return "partly rotated heads"
    if kind == "yarn" and settings.get("truncate") is False:
        return "rotary scaling 'yarn' whose range is not truncated"
    return None


def add_rotation(writer: Any, config: Any, width: int) -> Any:
    """Write the settings; returns the factors [D / 2] of a tensor that is to be written too, or None.

    Args:
        width: of a head, D.
    """
    from gguf import RopeScalingType

    settings = config.rope_parameters
    if "full_attention" in settings:
        writer.add_rope_freq_base_swa(float(settings["sliding_attention"]["rope_theta"]))
        settings = settings["full_attention"]
    kind = settings.get("rope_type", "default")
    writer.add_rope_freq_base(float(settings["rope_theta"]))
    if kind in {"linear", "yarn"}:
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(_factor(settings, config))
    if kind == "yarn":
        original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_yarn_beta_fast(float(settings.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(settings.get("beta_slow") or 1))
        own, usual = _frequencies(config, None)[1], _usual_scale(_factor(settings, config))
        if abs(own / usual - 1) > _TOLERANCE:
            writer.add_rope_scaling_attn_factors(own / usual)
    if kind != "llama3":
        return None
    inverse_H, _ = _frequencies(config, None)
    return (_unscaled(float(settings["rope_theta"]), width) / inverse_H).float().numpy()


def _factor(settings: Mapping[str, Any], config: Any) -> float:
    factor = settings.get("factor")
    if factor is None:
        factor = config.max_position_embeddings / settings["original_max_position_embeddings"]
    return float(factor)


def _usual_scale(factor: float) -> float:
    """By which YaRN multiplies rotated vectors."""
    return 1 + 0.1 * math.log(factor) if factor > 1 else 1.0


def _unscaled(theta: float, width: int) -> Any:
    import torch

    return 1 / theta ** (torch.arange(0, width, 2).double() / width)


def _frequencies(config: Any, layer_type: str | None) -> tuple[Any, float]:
    """(radians a position [D / 2], scale of rotated vectors), as transformers has them."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    kind = settings.get("rope_type", "default")
    if kind == "default":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return _unscaled(float(settings["rope_theta"]), width), 1.0
    more = {"layer_type": layer_type} if layer_type else {}
    inverse_H, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **more)
    return inverse_H.double(), float(scale)


def refuse_other_rotation(path: Path, config: Any) -> None:
    """
    Raises:
        ModelError: what the file says of rotation, as llama.cpp reads it, is not what the student's config says.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    layered = "full_attention" in config.rope_parameters
    wanted = {False: _frequencies(config, "full_attention" if layered else None)}
    if layered:
        wanted[True] = _frequencies(config, "sliding_attention")
    for sliding, (inverse_H, scale) in wanted.items():
        found_H, found_scale = _read(reader, sliding)
        far = float((found_H / inverse_H - 1).abs().max())
        if far > _TOLERANCE or abs(found_scale / scale - 1) > _TOLERANCE:
            raise ModelError(f"{path.name}: it rotates by other angles than the student (up to {far:.2%})")


def _read(reader: Any, sliding: bool) -> tuple[Any, float]:
    """(radians a position [D / 2], scale of rotated vectors) by the file's metadata, as llama.cpp computes them."""
    import torch

    architecture = reader.fields["general.architecture"].contents()

    def value(name: str, default: Any = None) -> Any:
        field = reader.fields.get(f"{architecture}.{name}")
        return default if field is None else field.contents()

    width = value("rope.dimension_count")
    if sliding:
        return _unscaled(value("rope.freq_base_swa"), width), 1.0
    theta, kind, factor = value("rope.freq_base"), value("rope.scaling.type"), value("rope.scaling.factor", 1.0)
    plain_H = _unscaled(theta, width)
    factors = next((tensor.data for tensor in reader.tensors if tensor.name == FACTORS), None)
    if factors is not None:
        plain_H = plain_H / torch.tensor(factors).double()
    if kind != "yarn":
        return plain_H / factor, 1.0
    length = value("rope.scaling.original_context_length", value("context_length"))
    ends = (value("rope.scaling.yarn_beta_fast", 32.0), value("rope.scaling.yarn_beta_slow", 1.0))
    first, last = (width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in ends)
    low, high = max(0, math.floor(first)), min(width - 1, math.ceil(last))
    kept_H = 1 - ((torch.arange(width // 2).double() - low) / max(0.001, high - low)).clamp(0, 1)
    scale = _usual_scale(factor) * value("rope.scaling.attn_factor", 1.0)
    return plain_H / factor * (1 - kept_H) + plain_H * kept_H, scale
