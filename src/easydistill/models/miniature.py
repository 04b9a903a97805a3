"""A tiny random model of the same architecture as another, made from its config: for questions that only running a
model answers, and that its weights do not change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from easydistill.models.loading import import_torch

TOKENS = 64
"""Its vocabulary."""
_LAYERS = 4
_AFFORDABLE = 40_000_000
"""Parameters that a model may have whose width cannot be reduced."""
_WIDTHS = {
    64: ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"),
    128: ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "intermediate_size_mlp", "shared_intermediate_size"),
    32: ("moe_intermediate_size", "shared_expert_intermediate_size", "kv_lora_rank", "q_lora_rank"),
    16: ("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "attention_head_size"),
    8: ("rotary_dim",),
    4: ("num_attention_heads", "n_head", "num_experts", "num_local_experts", "n_routed_experts"),
}
"""The largest values of what makes a model wide, under the names that architectures give it."""
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PER_LAYER = (
    "layer_types",
    "no_rope_layers",
    "layers_block_type",
    "mlp_layer_types",
    "attention_layers",
    "block_types",
)
"""Lists with an entry for each layer."""
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
AMPLIFIED = 4.0
"""The weights of fresh models are so small that tokens hardly influence each other."""


def miniature(config: Any, *, trust_remote_code: bool = False) -> Any | None:
    """A small model in eval mode on the CPU, in float32; None if none could be made that computes something.

    It has the layers' kinds, the attention and the positions of the original, fewer layers, and less width where the
    architecture allows that.
    """
    torch = import_torch()
    from transformers import AutoModelForCausalLM

    for changes in _changes(config.to_dict()):
        try:
            smaller = _changed(config, changes)
            if _size(smaller, trust_remote_code) > _AFFORDABLE:
                continue
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made = AutoModelForCausalLM.from_config(
                    smaller, dtype=torch.float32, trust_remote_code=trust_remote_code
                ).eval()
            with torch.inference_mode():
                for value in made.parameters():
                    if value.dim() > 1:
                        value *= AMPLIFIED
                logits = made(input_ids=torch.arange(1, 9)[None], use_cache=False).logits
            if bool(logits.isfinite().all()) and float(logits.std()) > 0:
                return made
        except Exception:
            # An architecture can refuse sizes in any way; what cannot be tried in small is tried when it is loaded.
            continue
    return None


def _size(config: Any, trust_remote_code: bool) -> int:
    """Parameters of a model of this config; nothing is allocated."""
    torch = import_torch()
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(value.numel() for value in made.parameters())


def _changes(described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Values of configs of smaller models, the smallest first."""
    few = _with_few_layers(described)
    narrow = {
        name: min(value, most)
        for most, names in _WIDTHS.items()
        for name in names
        if isinstance(value := described.get(name), int) and not isinstance(value, bool) and value > 0
    }
    heads = next((narrow[name] for name in ("num_attention_heads", "n_head") if name in narrow), None)
    shared = described.get("num_key_value_heads")
    if isinstance(shared, int) and heads is not None:
        whole = shared == described.get("num_attention_heads")
        narrow["num_key_value_heads"] = heads if whole else min(shared, 2)
    yield {**few, **narrow, **_recurrent(described, narrow)}
    yield few


def _recurrent(described: Mapping[str, Any], narrow: Mapping[str, int]) -> dict[str, int]:
    """Heads of state-space layers, which have to fill their width, and groups of experts, which have to divide them."""
    found = {name: 1 for name in ("n_group", "topk_group", "mamba_n_groups", "n_groups") if described.get(name)}
    for prefix, heads, size in (("mamba_", "mamba_n_heads", "mamba_d_head"), ("", "num_heads", "head_dim")):
        expand = described.get(f"{prefix}expand")
        if isinstance(expand, int | float) and heads in described and size in described and "hidden_size" in narrow:
            found |= {size: 16, heads: int(expand * narrow["hidden_size"]) // 16}
    if "mamba_d_ssm" in described and "mamba_n_heads" in found:
        found["mamba_d_ssm"] = 16 * found["mamba_n_heads"]
    return found


def _with_few_layers(described: Mapping[str, Any]) -> dict[str, Any]:
    """The first layers, as many as are needed to have one of each kind."""
    changes: dict[str, Any] = {"vocab_size": TOKENS, **dict.fromkeys(_ENDS, 0)}
    total = next((described[name] for name in _DEPTHS if isinstance(described.get(name), int)), 0)
    kinds = [described[name] for name in _PER_LAYER if isinstance(described.get(name), list)]
    kinds = [listed for listed in kinds if len(listed) == total]
    chosen = _of_each_kind([tuple(map(str, layer)) for layer in zip(*kinds, strict=True)], total)
    changes |= {name: len(chosen) for name in _DEPTHS if isinstance(described.get(name), int)}
    for name in _PER_LAYER:
        listed = described.get(name)
        if isinstance(listed, list) and len(listed) == total:
            changes[name] = [listed[at] for at in chosen]
    if isinstance(described.get("num_experts_per_tok"), int):
        changes["num_experts_per_tok"] = min(2, described["num_experts_per_tok"])
    if isinstance(described.get("first_k_dense_replace"), int):
        changes["first_k_dense_replace"] = min(1, described["first_k_dense_replace"])
    return changes


def _of_each_kind(kinds: list[tuple[str, ...]], total: int) -> list[int]:
    """Numbers of layers: the first of each kind, and others up to a few."""
    firsts = [at for at, kind in enumerate(kinds) if kind not in kinds[:at]]
    others = [at for at in range(total) if at not in firsts]
    return sorted([*firsts, *others[: max(0, min(_LAYERS, total) - len(firsts))]])


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    values = copy.deepcopy({**config.to_dict(), **changes})
    for name in ("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "quantization_config"):
        values.pop(name, None)
    made = type(config)(**values)
    # Code that comes with a model is found through this.
    if hasattr(config, "auto_map"):
        made.auto_map = config.auto_map
    if hasattr(config, "_name_or_path"):
        made._name_or_path = config._name_or_path
    return made
