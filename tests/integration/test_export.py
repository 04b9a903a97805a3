"""The job `export`, from config to report, with tiny models of every architecture that is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.tiny import SMALL_VOCABULARY

import easydistill
from easydistill.errors import ConfigError, ModelError

ROWS = [{"id": f"r{n}", "instruction": f"Say {n}, please.", "output": f"It's {n}!\nNaïve — 漢字."} for n in range(4)]
SIZES = {
    "vocab_size": SMALL_VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def model_of(kind: str, tokenizer: Path, folder: Path, noise: float = 0.3, **values: Any) -> str:
    """A tiny model with random weights, biases and norms among them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **values}))
        for weight in model.parameters():
            weight.data += noise * torch.randn_like(weight)
    model.save_pretrained(folder)
    return str(folder)


def job_of(student: str, rows: str, folder: Path, *formats: str, **more: Any) -> dict[str, Any]:
    return {
        "job_type": "export",
        "output_dir": str(folder / "run"),
        "models": {"student": student},
        "formats": list(formats),
        "dataset": {"labeled_path": rows},
        **more,
    }


def records(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((folder / "run/stages").glob("*/exported.json"))
    found = [json.loads(path.read_text()) for path in paths]
    return {f"{each['format']}:{each['number']}": each for each in found}


KINDS = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    # A width of heads that is not the width of the model by their number.
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 7},
    "phi3": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_the_same_in_gguf(kind: str, tiny_model: Path, tmp_path: Path, rows: str) -> None:
    student = model_of(kind, tiny_model, tmp_path / "student", **KINDS[kind])
    easydistill.run(job_of(student, rows, tmp_path, "gguf:f32", "gguf:q8_0"))
    found = records(tmp_path)
    exact, rounded = found["gguf:f32"], found["gguf:q8_0"]
    assert exact["kl"] < 1e-9 and exact["agreement"] == 1.0
    assert 0 < rounded["kl"] < 0.05 and rounded["bytes"] < 0.4 * exact["bytes"]
    assert exact["rows"] == 4 and exact["tokens"] > 40


def test_four_bits_in_whole_blocks(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    student = model_of("qwen2", tiny_model, tmp_path / "student", 0.02, hidden_size=256, intermediate_size=512)
    easydistill.run(job_of(student, rows, tmp_path, "gguf:q8_0", "gguf:q4_k_m"))
    eight, four = records(tmp_path).values()
    assert set(four["tensors"]) == {"F32", "Q4_K", "Q6_K"} and "blocks" not in str(four["notes"])
    assert four["bytes"] < 0.8 * eight["bytes"] and eight["kl"] < four["kl"] < 1


def test_the_report_files_and_commands(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    formats = ("safetensors", "safetensors:float16", "gguf:f16", "gguf:q8_0")
    easydistill.run(job_of(str(tiny_model), rows, tmp_path, *formats))
    run = tmp_path / "run"
    found = records(tmp_path)
    assert list(found) == ["safetensors:stored", "safetensors:float16", "gguf:f16", "gguf:q8_0"]
    assert found["safetensors:stored"]["kl"] == 0 and found["gguf:f16"]["kl"] < 1e-4 and found["gguf:q8_0"]["kl"] < 1e-2
    assert (run / "exports/safetensors-stored/tokenizer.json").is_file()
    # A server under another account reads the weights too.
    assert len({path.stat().st_mode for path in (run / "exports/safetensors-stored").iterdir()}) == 1
    gguf = run / "exports/gguf-q8_0"
    modelfile = (gguf / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model-q8_0.gguf\nTEMPLATE") and modelfile.endswith(
        'PARAMETER stop "<|im_end|>"\n'
    )
    assert 'SYSTEM """You are a helpful AI assistant named SmolLM' in modelfile
    readme = (gguf / "README.md").read_text()
    assert "llama-server -m model-q8_0.gguf" in readme and "ollama create" in readme and "`<|im_end|>`" in readme
    assert "vllm serve" in (run / "exports/safetensors-stored/README.md").read_text()
    report = (run / "report.md").read_text()
    line = next(line for line in report.splitlines() if line.startswith("| gguf:q8"))
    assert "Q8\\_0" in line and "%" in line
    html = (run / "report.html").read_text()
    # Kinds of tensors are many words: in one line they push the formats' names together.
    assert "Quality per byte" in html and '<td class="kinds">' in html


def test_a_further_format_leaves_the_others_as_they_are(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    easydistill.run(job_of(str(tiny_model), rows, tmp_path, "gguf:f16"))
    written = tmp_path / "run/exports/gguf-f16/model-f16.gguf"
    before = written.stat().st_mtime_ns
    easydistill.run(job_of(str(tiny_model), rows, tmp_path, "gguf:f16", "gguf:bf16"))
    assert written.stat().st_mtime_ns == before
    assert (tmp_path / "run/exports/gguf-bf16/model-bf16.gguf").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM is not written as GGUF"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary scaling 'dynamic'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "sliding-window attention"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "known are linear, yarn, llama3"),
        ({"architectures": ["Gemma3ForCausalLM"], "hidden_act": None, "head_dim": 64}, "the root of 256"),
        (
            {"architectures": ["Gemma2ForCausalLM"], "hidden_act": None, "final_logit_softcapping": None},
            "logits that are not capped",
        ),
    ],
)
def test_what_the_file_would_not_say_is_refused_before_the_run(
    change: dict[str, Any], words: str, tiny_model: Path, tmp_path: Path, rows: str
) -> None:
    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=words):
        easydistill.run(job_of(str(student), rows, tmp_path, "gguf:f16"))


def test_an_unknown_tensor_is_refused_by_name(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    student = model_of("llama", tiny_model, tmp_path / "student", mlp_bias=True)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.gate_proj\.bias"):
        easydistill.run(job_of(student, rows, tmp_path, "gguf:f16"))
    assert not (tmp_path / "run/exports").exists()


def test_a_way_to_split_words_that_is_not_known_is_refused(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    described = json.loads((student / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, described["pre_tokenizer"]]}
    (student / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="splits words"):
        easydistill.run(job_of(str(student), rows, tmp_path, "gguf:f16"))


def test_weights_beyond_float16_are_refused(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    model.model.norm.weight.data[3] = 1e5
    model.save_pretrained(student)
    for spec in ("gguf:f16", "safetensors:float16"):
        with pytest.raises(ModelError, match="beyond float16"):
            easydistill.run(job_of(str(student), rows, tmp_path, spec))


@pytest.mark.parametrize(
    ("formats", "dataset", "words"),
    [
        (["onnx"], {}, "there is no format 'onnx'"),
        (["gptq:w3g128"], {}, "gptq has no type of number 'w3g128'"),
        (["gguf:q9"], {}, "gguf has no type of number 'q9'"),
        (["gguf", "gguf:f16"], {}, "there twice"),
        (["gguf"], {"instruction_path": "x.jsonl"}, "instruction_path"),
    ],
)
def test_configs_that_cannot_be_run_are_refused(
    formats: list[str], dataset: dict[str, Any], words: str, tiny_model: Path, tmp_path: Path, rows: str
) -> None:
    config = job_of(str(tiny_model), rows, tmp_path, *formats)
    config["dataset"] |= dataset
    with pytest.raises(ConfigError, match=words):
        easydistill.validate(config)


def test_rows_of_q_and_k_become_neighbours() -> None:
    import torch

    from easydistill.exporting.gguf_file import interleaved

    rows = interleaved(torch.arange(8).reshape(8, 1), heads=2).flatten()
    assert np.array_equal(rows, [0, 2, 1, 3, 4, 6, 5, 7])


def test_a_pipeline_exports_what_it_has_trained_and_compares_on_rows_held_out(
    tiny_model: Path, tmp_path: Path, rows: str
) -> None:
    sft = {
        "job_type": "black_box_kd_local",
        "dataset": {"labeled_path": rows},
        "models": {"student": str(tiny_model)},
        "training": {"num_train_epochs": 1, "max_length": 128},
        "evaluation": {"heldout": 2, "generate": False},
    }
    export = {"job_type": "export", "models": {"student": "@sft/student"}, "formats": ["gguf:f16"]}
    jobs = {"sft": sft, "export": export}
    easydistill.run({"job_type": "pipeline", "output_dir": str(tmp_path / "run"), "jobs": jobs})
    inner = tmp_path / "run/stages/2-export"
    record = json.loads((inner / "stages/1-gguf-f16/exported.json").read_text())
    assert record["rows"] == 2 and record["kl"] < 1e-4
    assert (inner / "exports/gguf-f16/model-f16.gguf").is_file()
    assert "Quality per byte" in (tmp_path / "run/report.md").read_text()


def test_a_pipeline_tells_before_it_trains_what_cannot_be_exported(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    sft = {"job_type": "black_box_kd_local", "dataset": {"labeled_path": rows}, "models": {"student": str(base)}}
    export = {"job_type": "export", "models": {"student": "@sft/student"}, "formats": ["gguf:f16"]}
    jobs = {"sft": sft, "export": export}
    with pytest.raises(ConfigError, match=r"jobs\.export\.formats.*hidden_act 'gelu'"):
        easydistill.run({"job_type": "pipeline", "output_dir": str(tmp_path / "run"), "jobs": jobs})
    assert not (tmp_path / "run/stages/1-sft").exists()


def test_a_student_without_a_run_needs_rows(tiny_model: Path, tmp_path: Path, rows: str) -> None:
    config = job_of(str(tiny_model), rows, tmp_path, "gguf")
    del config["dataset"]
    with pytest.raises(ConfigError, match="held-out rows"):
        easydistill.run(config)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_ways_to_split_words_come_back_from_the_file(name: str, tiny_model: Path, tmp_path: Path, rows: str) -> None:
    from gguf import GGUFReader

    from easydistill.exporting.gguf_tokenizer import SPLITTINGS

    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    described = json.loads((student / "tokenizer.json").read_text())
    steps = [dict(step) for step in SPLITTINGS[name].steps]
    described["pre_tokenizer"] = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    for step in steps:
        if step["type"] == "ByteLevel":
            step["trim_offsets"] = True
    described["model"]["ignore_merges"] = SPLITTINGS[name].ignores_merges
    (student / "tokenizer.json").write_text(json.dumps(described))
    easydistill.run(job_of(str(student), rows, tmp_path, "gguf:f16"))
    fields = GGUFReader(tmp_path / "run/exports/gguf-f16/model-f16.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name


def test_every_end_token_is_in_the_file_and_a_student_without_a_template_can_be_compared(
    tiny_model: Path, tmp_path: Path, rows: str
) -> None:
    from gguf import GGUFReader

    student = tmp_path / "student"
    shutil.copytree(tiny_model, student)
    (student / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    template = tmp_path / "chat.jinja"
    shutil.move(student / "chat_template.jinja", template)
    config = job_of(str(student), rows, tmp_path, "gguf:f16")
    config["dataset"]["template"] = str(template)
    easydistill.run(config)
    folder = tmp_path / "run/exports/gguf-f16"
    fields = GGUFReader(folder / "model-f16.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 0
    assert "tokenizer.chat_template" not in fields
    modelfile = (folder / "Modelfile").read_text()
    assert '"<|im_end|>"' in modelfile and '"<|endoftext|>"' in modelfile
    assert records(tmp_path)["gguf:f16"]["lacks_ends"] == []
