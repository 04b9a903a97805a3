"""Rotary scaling as written, read back by llama.cpp's formulas, beside transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from easydistill.errors import ModelError
from easydistill.exporting.gguf_rotation import FACTORS, add_rotation, problem_of, refuse_other_rotation


class Writer:
    """Keeps what is written under the name of the method."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.values.__setitem__(name.removeprefix("add_"), value)


BASE = {"rope_theta": 10_000.0}
LENGTH = {"original_max_position_embeddings": 2048}
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, **LENGTH},
    {"rope_type": "yarn", "factor": 16.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.1, **LENGTH},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7, **LENGTH},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LENGTH},
]


def written(folder: Path, rope: dict[str, Any], changed: dict[str, Any] | None = None) -> tuple[Path, Any]:
    import gguf
    from transformers import LlamaConfig

    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 8192}
    config = LlamaConfig(**sizes, rope_parameters={**BASE, **rope})
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_rope_dimension_count(64)
    writer.add_context_length(8192)
    factors = add_rotation(writer, config, 64)
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
    if factors is not None:
        writer.add_tensor(FACTORS, factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, LlamaConfig(**sizes, rope_parameters={**BASE, **rope, **(changed or {})})


@pytest.mark.parametrize("rope", SCALINGS, ids=lambda rope: rope["rope_type"])
def test_the_file_says_the_same_angles(rope: dict[str, Any], tmp_path: Path) -> None:
    refuse_other_rotation(*written(tmp_path, rope))


@pytest.mark.parametrize(
    ("rope", "changed"),
    [
        (SCALINGS[0], {"rope_theta": 20_000.0}),
        (SCALINGS[1], {"factor": 2.0}),
        (SCALINGS[2], {"beta_fast": 16.0}),
        (SCALINGS[3], {"attention_factor": 1.0}),
        (SCALINGS[5], {"low_freq_factor": 2.0}),
    ],
)
def test_other_angles_are_refused(rope: dict[str, Any], changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="rotates by other angles"):
        refuse_other_rotation(*written(tmp_path, rope, changed))


def test_what_the_file_has_no_place_for() -> None:
    for kind in ("dynamic", "longrope", "proportional"):
        assert kind in str(problem_of({"rope_type": kind}, "llama"))
    assert "llama3" in str(problem_of({"rope_type": "llama3"}, "qwen2"))
    assert "truncated" in str(problem_of({"rope_type": "yarn", "truncate": False}, "llama"))
    assert "partly" in str(problem_of({"partial_rotary_factor": 0.5}, "phi3"))
    assert problem_of({"type": "linear", "factor": 2.0}, "qwen3") is None
