"""What llama.cpp computes with exports of tiny random models, beside transformers: every architecture and scaling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_export import KINDS, model_of
from tests.support.llama_cpp import llama_cpp

from easydistill.exporting.gguf_file import write_file
from easydistill.exporting.gguf_tokenizer import read_tokenizer
from easydistill.exporting.reading_back import PROBES
from easydistill.exporting.stage import source_of

pytestmark = pytest.mark.slow
NOISE = 0.06
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 1.0}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, other bounds": {"factor": 4.0, **YARN},
    "yarn, other scores": {"factor": 4.0, **YARN, "attention_factor": 1.3},
    "llama3": {"factor": 8.0, **LLAMA_3},
}
CASES: list[tuple[str, dict[str, Any]]] = [(kind, values) for kind, values in KINDS.items()]
for _name, _scaling in SCALINGS.items():
    _rope = {"rope_type": _name.split(",")[0], "rope_theta": 10_000.0, **_scaling}
    CASES.append(("llama", {"tie_word_embeddings": True, "rope_parameters": _rope}))
CASES.append(("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, **YARN}}))
_LAYERED = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
CASES.append(("gemma3_text", {**KINDS["gemma3_text"], "rope_parameters": _LAYERED}))


def _case(case: tuple[str, dict[str, Any]]) -> str:
    rope = case[1].get("rope_parameters", {})
    return f"{case[0]} {rope.get('rope_type', 'layered' if rope else '')}".strip()


@pytest.mark.parametrize("case", CASES, ids=_case)
def test_llama_cpp_expects_what_transformers_does(
    case: tuple[str, dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    """After 300 tokens: beyond windows, and beyond the length that scaling starts from."""
    import torch
    from transformers import AutoModelForCausalLM

    kind, values = case
    student = model_of(kind, tiny_model, tmp_path / "student", 0.2, **values, max_position_embeddings=1024)
    write_file(source_of(student), "f32", tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    ids = torch.randint(20, 8000, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        wanted_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    with llama_cpp(tmp_path / "model.gguf") as ask:
        for length in (5, 300):
            asked = {"prompt": ids[:length], "n_predict": 1, "n_probs": 40, "temperature": 0, "cache_prompt": False}
            found = ask("/completion", asked)["completion_probabilities"][0]["top_logprobs"]
            wanted_V = wanted_TV[length - 1]
            assert wanted_V.topk(5).indices.tolist() == [each["id"] for each in found[:5]]
            far = max(abs(each["logprob"] - float(wanted_V[each["id"]])) for each in found)
            # Keys and values are float16 there; 0.038 at most in what was measured.
            assert far < NOISE, (length, far)


def test_a_scaling_that_is_left_out_would_be_seen(tiny_model: Path, tmp_path: Path) -> None:
    """The comparison above tells scaled from unscaled rotation at 300 tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.randint(20, 8000, (1, 300), generator=torch.Generator().manual_seed(0))
    logits = []
    for scaling in ({"rope_type": "default"}, {"rope_type": "llama3", **SCALINGS["llama3"]}):
        rope = {"rope_theta": 10_000.0, **scaling}
        folder = tmp_path / scaling["rope_type"]
        path = model_of("llama", tiny_model, folder, 0.2, rope_parameters=rope, max_position_embeddings=1024)
        with torch.inference_mode():
            logits.append(AutoModelForCausalLM.from_pretrained(path)(ids).logits[0, -1].log_softmax(-1))
    top = logits[0].topk(40).indices
    assert (logits[0] - logits[1])[top].abs().max() > 5 * NOISE


AWKWARD = (
    *PROBES,
    "",
    " ",
    "   three before, three after   ",
    "\n\n\n",
    "byte fallback: 𐍈 ꙮ \u0000 \x7f 🫠🏳️‍🌈",
    "▁▁literal▁marks",
    "<s>[INST] hi [/INST] there</s><s>  [INST]again[/INST]",
    "</s></s> x",
    "<unk> <0x41> <not a token>",
    "a" * 200,
)
WAYS: dict[str, tuple[Any, Any]] = {
    "legacy": (
        {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        None,
    ),
    "gemma": (
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    ),
    "first": (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}),
}


@pytest.mark.parametrize("way", WAYS)
def test_sentencepiece_tokenizers_read_the_same_tokens_in_llama_cpp(way: str, tiny_model: Path, tmp_path: Path) -> None:
    """Mistral's own tokenizer, with each of the ways to put spaces."""
    from transformers import AutoTokenizer, LlamaTokenizer

    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    made = tmp_path / "made"
    made.mkdir()
    shutil.copyfile(data / "mistral_instruct_tokenizer_240323.model.v3", made / "tokenizer.model")
    LlamaTokenizer.from_pretrained(made).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    path = tmp_path / "tokenizer/tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["normalizer"], described["pre_tokenizer"] = WAYS[way]
    path.write_text(json.dumps(described), encoding="utf-8")
    student = model_of("llama", tmp_path / "tokenizer", tmp_path / "student", vocab_size=32_768)
    written = write_file(source_of(student), "f16", tmp_path / "model.gguf")
    assert written.before == ("<s>" if way == "first" else "")
    tokenizer, read = AutoTokenizer.from_pretrained(student), read_tokenizer(tmp_path / "model.gguf")
    with llama_cpp(tmp_path / "model.gguf") as ask:
        for text in (written.before + text for text in AWKWARD):
            wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
            asked = {"content": text, "add_special": False, "parse_special": True}
            assert ask("/tokenize", asked)["tokens"] == wanted == read.encode(text), text
