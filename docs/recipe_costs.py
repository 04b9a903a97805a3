"""What the recipes cost by `easydistill plan`, with 10,000 prompts, on one GPU and on eight.

`python docs/recipe_costs.py [NAME…]` writes the figures into recipes' `about.json` and `README.md`; `--check` only
compares.
Nothing is loaded: the shapes of the published students and of the teachers that score tokens are here, and prompts are
the recipe's own, repeated with a number.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from easydistill import api
from easydistill.data.files import write_jsonl
from easydistill.data.row_files import rows_of
from easydistill.engine.stage import Estimate, PlannedStage, total_of
from easydistill.recipes import ABOUT, README, Recipe, recipes

PROMPTS = 10_000
PRICES = {"input": 1.0, "output": 4.0}
"""Per million tokens, for scale."""
GPU_GB = 80
_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}


def _qwen2(hidden: int, layers: int, heads: int, key_value: int, inner: int, **other: Any) -> dict[str, Any]:
    return {
        **_QWEN2,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value,
        "intermediate_size": inner,
        **other,
    }


SHAPES = {
    "Qwen/Qwen2-1.5B-Instruct": _qwen2(1536, 28, 12, 2, 8960, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(2048, 36, 16, 2, 11008, vocab_size=151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(3584, 28, 28, 4, 18944),
    "Qwen/Qwen2.5-72B-Instruct": _qwen2(8192, 80, 64, 8, 29568),
    "Qwen/Qwen3-8B": _qwen2(4096, 36, 32, 8, 12288, vocab_size=151936, head_dim=128, model_type="qwen3")
    | {"architectures": ["Qwen3ForCausalLM"]},
}
"""The published sizes of the models that the recipes name."""
_SEEDS = "seeds"
"""Data from which a recipe makes as many prompts as it is told itself."""
_PROBLEM = {
    "question_id": "1",
    "question_content": "Read a number and print its double.",
    "starter_code": "",
    "difficulty": "easy",
    "contest_date": "2024-01-01T00:00:00",
    "public_test_cases": json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}]),
    "private_test_cases": "[]",
    "metadata": "{}",
}
_LIVE_CODE_BENCH_V2 = 511
"""Problems of the release."""
_MARKS = re.compile(r"(<!-- plan -->\n).*?(<!-- /plan -->)", re.DOTALL)


def settings(recipe: Recipe, folder: Path, prompts: int, gpus: int) -> list[str]:
    """The overrides with which a recipe's `full` is planned on this machine for another one."""
    job: Any = api.load(recipe.config("full")).job
    found = [f"output_dir={folder / 'run'}", f"shared.inference.prices={json.dumps(PRICES)}"]
    for name, model in job.models.items():
        if model in SHAPES:
            found.append(f"models.{name}={_shape_alone(folder / name, model)}")
    for name, path in job.data.items():
        if name == _SEEDS:
            continue
        if name == "benchmark":
            asked = _PROBLEM["question_content"]
            rows = [{**_PROBLEM, "question_content": f"{asked} ({number})"} for number in range(_LIVE_CODE_BENCH_V2)]
        else:
            shown = list(rows_of(path))
            rows = [_numbered(shown[number % len(shown)], number) for number in range(prompts)]
        write_jsonl(folder / f"{name}.jsonl", rows)
        found.append(f"data.{name}={folder / name}.jsonl")
    if "launch" in job.shared:
        found += [f"shared.launch.processes={gpus}", f"shared.launch.gpu_memory_gb={GPU_GB}"]
    return found


def _shape_alone(place: Path, model: str) -> Path:
    """A directory that looks like a model's: its config, and the header of its weights' file. Nothing loads it."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(SHAPES[model]), encoding="utf-8")
    (place / "tokenizer.json").write_text("{}", encoding="utf-8")
    (place / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', encoding="utf-8")
    at, header = 0, {}
    for name, shape in _weights(SHAPES[model]).items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    written = json.dumps(header).encode()
    with (place / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        # A hole: it takes no room on disk.
        file.truncate(8 + len(written) + at)
    return place


def _weights(shape: dict[str, Any]) -> dict[str, list[int]]:
    """Tensors of a Qwen2 or Qwen3 model, but for its many small ones (biases and norms)."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = shape.get("head_dim", hidden // shape["num_attention_heads"])
    wide, narrow = head * shape["num_attention_heads"], head * shape["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": [wide, hidden],
        "self_attn.k_proj": [narrow, hidden],
        "self_attn.v_proj": [narrow, hidden],
        "self_attn.o_proj": [hidden, wide],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
    }
    found = {"model.embed_tokens.weight": [shape["vocab_size"], hidden]}
    if not shape["tie_word_embeddings"]:
        found["lm_head.weight"] = [shape["vocab_size"], hidden]
    for number in range(shape["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    return found


def _numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """No two prompts are the same question, which would be asked once."""
    return {**row, "instruction": f"{row['instruction']} ({number})"}


def planned(recipe: Recipe, prompts: int, gpus: int) -> list[PlannedStage]:
    """What `plan` says of a recipe's `full`."""
    with tempfile.TemporaryDirectory() as folder:
        return api.plan(recipe.config("full"), settings(recipe, Path(folder), prompts, gpus))


def costs(recipe: Recipe) -> tuple[str, str]:
    """(the line of `about.json`, the section of `README.md`)."""
    many, alone = planned(recipe, PROMPTS, 8), planned(recipe, 1, 1)
    total = total_of(many)
    assert total.calls and total.completion_tokens and total.prompt_tokens and total.cost
    tokens = f"{_short(total.prompt_tokens)} tokens of prompts, {_short(total.completion_tokens)} of answers"
    line = f"{PROMPTS:,} prompts: {total.calls:,} calls; {tokens}"
    lines = [
        f"{total.calls:,} calls with {tokens}; at {PRICES['input']:g} and {PRICES['output']:g} a million, at most "
        f"{total.cost[1]:,.0f}. These are the limits of the first questions of each job, with no row rejected: "
        "retries, and questions that depend on answers, come on top; answers are rarely as long as they may be. After "
        "a run over some rows (`dataset.max_samples`), `plan` extrapolates from real answers.",
        "",
        "| stage | calls | tokens of prompts | of answers | one GPU | each of eight |",
        "|---|---|---|---|---|---|",
    ]
    by_name = {stage.name: stage.estimate for stage in alone}
    for stage in many:
        each = stage.estimate
        if each.calls or each.memory_bytes:
            lines.append(_row(stage.name, each, by_name[stage.name]))
    on_one, on_each = (total_of(stage for stage in stages if stage.estimate.disk_bytes) for stages in (alone, many))
    if on_one.memory_bytes:
        line += f"; trains in {_gigabytes(on_one)} on one GPU, {_gigabytes(on_each)} on each of eight"
        lines += [
            "",
            "Memory: of each process that trains, under `fsdp2`; what scores holds the teacher, on all GPUs together.",
        ]
    return line, "\n".join(lines)


def _row(name: str, many: Estimate, alone: Estimate) -> str:
    cells = ("", "", "")
    if many.calls:
        calls = f"{many.calls_at_most or many.calls:,}"
        cells = (calls, _short(many.prompt_tokens), _short(many.completion_tokens))
    memory = (_gigabytes(alone), _gigabytes(many)) if many.memory_bytes else ("", "")
    return f"| {' | '.join((name, *cells, *memory))} |"


def _gigabytes(estimate: Estimate) -> str:
    return f"{(estimate.memory_bytes or 0) / 1e9:,.0f} GB"


def _short(ends: tuple[int, int] | None) -> str:
    if ends is None:
        return "?"
    low, high = (f"{end / 1e6:,.3g} M" if end < 1e9 else f"{end / 1e6:,.0f} M" for end in ends)
    return f"{low} to {high}"


def main(names: list[str], *, check: bool) -> int:
    os.environ.setdefault("API_KEY", "none")
    stale = []
    for recipe in recipes():
        if names and recipe.name not in names:
            continue
        line, section = costs(recipe)
        for path, text in (
            (recipe.folder / ABOUT, _about(recipe, line)),
            (recipe.folder / README, _MARKS.sub(rf"\g<1>{section}\n\g<2>", _text(recipe.folder / README))),
        ):
            if text != _text(path):
                stale.append(path)
                if not check:
                    path.write_text(text, encoding="utf-8")
    print("\n".join(f"{'out of date' if check else 'wrote'}: {path.parent.name}/{path.name}" for path in stale))
    return int(check and bool(stale))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _about(recipe: Recipe, cost: str) -> str:
    shown = {"does": recipe.does, "teachers": recipe.teachers, "students": recipe.students, "cost": cost}
    return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main([name for name in given if name != "--check"], check="--check" in given))
