"""A GGUF file → a plain safetensors model directory, tokenizer and chat template included."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from easydistill.errors import MissingExtra, ModelError

LOGGER = logging.getLogger("easydistill.models")


def convert(file: Path, target: Path) -> None:
    """Dequantise `file` into the directory `target`, which appears only when it is complete.

    Storing a quantised weight as bfloat16 adds less error than the quantisation itself.

    Raises:
        MissingExtra: transformers or gguf is not installed.
        ModelError: the file is not a GGUF model that transformers knows.
    """
    try:
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:
        raise MissingExtra("train", f"Reading {file.name}") from None

    LOGGER.info("converting %s to safetensors, once", file)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{file}: transformers cannot read this GGUF file: {error}") from error
    # transformers refuses to save a model that is still marked as quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
