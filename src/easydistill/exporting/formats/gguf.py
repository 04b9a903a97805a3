"""A GGUF file for llama.cpp and Ollama: weights, tokenizer and chat template in one file, written on a CPU, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easydistill.contracts.export_format import Source, Written
from easydistill.errors import ModelError
from easydistill.exporting.gguf_architectures import config_problem
from easydistill.exporting.gguf_numbers import TYPES

NUMBERS = tuple(TYPES)
LOSSLESS = ("f32", "f16")


def problem(config: dict[str, Any], number: str) -> tuple[str, str] | None:
    """Whether the architecture's tensors are known, and nothing in the config is left out."""
    return config_problem(config)


def write(source: Source, number: str, target: Path) -> Written:
    """Write `model-<number>.gguf`."""
    from easydistill.exporting.gguf_file import write_file

    return write_file(source, number, target / f"model-{number}.gguf")


def load(source: Source, target: Path, file: str) -> Any:
    """The model as transformers reads the file's tensors, in the shape that the student's config gives.

    Raises:
        ModelError: the file lacks tensors, or rotates by other angles.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    from easydistill.exporting.gguf_rotation import refuse_other_rotation

    refuse_other_rotation(target / file, source.config)
    model, info = AutoModelForCausalLM.from_pretrained(
        target,
        gguf_file=file,
        config=_readable(source.config),
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    tied = {"lm_head.weight"} if source.config.tie_word_embeddings else set()
    if missing := sorted(set(info["missing_keys"]) - tied):
        raise ModelError(f"{file}: it lacks {', '.join(missing[:3])}")
    return model.eval()


def _readable(config: Any) -> Any:
    """The config under which transformers reads the file: Mistral's is a Llama there, as it is without a window."""
    if config.model_type != "mistral":
        return config
    from transformers import LlamaConfig

    left_out = {"model_type", "architectures", "sliding_window", "transformers_version"}
    return LlamaConfig(**{name: value for name, value in config.to_dict().items() if name not in left_out})


def load_tokenizer(target: Path, file: str) -> Any:
    """The tokenizer that the file's metadata describe."""
    from easydistill.exporting.gguf_tokenizer import read_tokenizer

    return read_tokenizer(target / file)
