"""Exports of SmolLM2, loaded by llama.cpp itself, where xllamacpp is installed (it has a build for CPUs)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.llama_cpp import llama_cpp

import easydistill
from easydistill.exporting.reading_back import PROBES

pytestmark = pytest.mark.slow
FORMATS = ("f16", "q8_0", "q4_k_m")
QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Translate 'water' to German.",
)


@pytest.fixture(scope="module")
def run(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in three types of number."""
    folder = tmp_path_factory.mktemp("export")
    prompts = [{"instruction": text, "output": "I would say that it depends on 12 things."} for text in QUESTIONS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    easydistill.run(
        {
            "job_type": "export",
            "output_dir": str(folder / "run"),
            "models": {"student": str(smollm)},
            "formats": [f"gguf:{number}" for number in FORMATS],
            "dataset": {"labeled_path": str(folder / "rows.jsonl")},
        }
    )
    return folder / "run"


def test_figures(run: Path) -> None:
    found = [json.loads(path.read_text()) for path in sorted(run.glob("stages/*/exported.json"))]
    exact, eight, four = found
    assert exact["kl"] < 1e-4 and eight["kl"] < 0.01 and four["kl"] < 0.5
    assert exact["bytes"] > eight["bytes"] > four["bytes"]


@pytest.fixture(scope="module")
def written(smollm: Path) -> list[tuple[list[dict[str, str]], list[int], list[int]]]:
    """Each question with the ids of its prompt and of what the student answers, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    student = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32).eval()
    found = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))["input_ids"]
        with torch.inference_mode():
            ids = student.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[0].tolist()
        found.append((chat, prompt, ids[len(prompt) :]))
    return found


@pytest.mark.parametrize(("number", "least"), [("f16", 0.95), ("q8_0", 0.85), ("q4_k_m", 0.6)])
def test_llama_cpp_reads_the_same_tokens_and_expects_the_same_ones(
    number: str, least: float, run: Path, smollm: Path, written: list[tuple[list[dict[str, str]], list[int], list[int]]]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    same = []
    with llama_cpp(run / f"exports/gguf-{number}/model-{number}.gguf") as ask:
        for text in PROBES:
            found = ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
            assert found == tokenizer(text)["input_ids"], text
        for chat, prompt, answer in written:
            templated = ask("/apply-template", {"messages": chat})["prompt"]
            assert tokenizer(templated)["input_ids"] == prompt
            for at, token in enumerate(answer):
                asked = {"prompt": prompt + answer[:at], "n_predict": 1, "temperature": 0, "return_tokens": True}
                reply = ask("/completion", asked)
                # An end token is not returned as one.
                ended = reply["stop_type"] == "eos" and token == tokenizer.eos_token_id
                same.append(reply["tokens"] == [token] or ended)
    assert sum(same) / len(same) >= least
