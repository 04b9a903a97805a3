"""Malformed configs: exit code 2, where the mistake is, what it is, and how to mend it. Never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easydistill.cli import main

LOCAL: dict[str, Any] = {
    "job_type": "black_box_kd_local",
    "dataset": {"instruction_path": "train.json"},
    "inference": {"temperature": 0.8},
    "models": {"teacher": "teacher/", "student": "student/"},
    "training": {"learning_rate": 2e-5},
}
API: dict[str, Any] = {
    "job_type": "black_box_kd_api",
    "dataset": {"instruction_path": "train.json"},
    "inference": {"base_url": "http://localhost:8000/v1", "api_key": "sk-never-print-this"},
    "models": {"student": "student/"},
}

# (text of the file, words the message must hold). The suffix is .json.
SYNTAX: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["empty", "easydistill init"]),
    "blank": (" \n\n ", ["empty", "easydistill init"]),
    "only a comment": ("// nothing", [":1", "ends where a value should be"]),
    "number": ("3", ["int", "{"]),
    "text": ('"x"', ["str", "{"]),
    "array": ("[1, 2]", ["list", "{"]),
    "null": ("null", ["NoneType", "{"]),
    "open brace": ("{", [":1:2", "not closed", "add a }"]),
    "open section": ('{"dataset": {"seed": 1}', ["not closed", "add a }"]),
    "open array": ('{"a": [1, 2', ["not closed", "add a ]"]),
    "wrong closer": ('{"a": [1, 2}', ["']' was expected"]),
    "wrong closer in section": ('{"a": {"b": 1]}', ["'}' was expected"]),
    "missing comma": ('{"a": 1\n "b": 2}', [":2:2", "comma is missing", "add a comma"]),
    "missing comma in array": ('{"a": [1 2]}', ["comma is missing"]),
    "missing colon": ('{"a" 1}', ["colon is missing", '"a": …']),
    "equals sign": ('{"a" = 1}', ["colon is missing"]),
    "missing value": ('{"a": }', ["value is missing"]),
    "missing value before comma": ('{"a": , "b": 1}', ["value is missing"]),
    "missing key": ("{: 1}", ["key is needed"]),
    "lone comma": ("{,}", ["key is needed"]),
    "two commas": ('{"a": 1,, "b": 2}', ["key is needed"]),
    "unquoted key": ("{job_type: 1}", ["not quoted", '"job_type"']),
    "unquoted value": ('{"a": hello}', ["not quoted", '"hello"']),
    "single quotes": ("{\"a\": 'x'}", ["single quotes", "double quotes"]),
    "single quoted key": ("{'a': 1}", ["single quotes", "double quotes"]),
    "number key": ("{1: 2}", ["key is needed"]),
    "Python True": ('{"a": True}', ["write true"]),
    "Python False": ('{"a": False}', ["write false"]),
    "Python None": ('{"a": None}', ["write null"]),
    "NaN": ('{"a": NaN}', ["write null"]),
    "undefined": ('{"a": undefined}', ["write null"]),
    "leading zero": ('{"a": 007}', ["not a number"]),
    "two dots": ('{"a": 1.2.3}', ["not a number"]),
    "unit": ('{"a": 10k}', ["not a number", "quote it"]),
    "bare dot": ('{"a": .5}', ["value is missing"]),
    "plus": ('{"a": +5}', ["value is missing"]),
    "thousands": ('{"a": 1_000}', ["not a number"]),
    "open text": ('{"a": "x}', ["not closed"]),
    "text over lines": ('{"a": "You are\n  helpful"}', [":1:7", "over the end of its line", "\\n"]),
    "bad escape": ('{"a": "C:\\dir"}', ["unknown escape", "\\\\"]),
    "bad unicode escape": ('{"a": "\\u12"}', ["unknown escape"]),
    "half surrogate": ('{"a": "\\ud800"}', ["surrogate"]),
    "tab in text": ('{"a": "x\ty"}', ["control character"]),
    "duplicate key": ('{"a": 1,\n "a": 2}', [":2", "stands twice", "line 1", "keep one"]),
    "duplicate section": ('{"dataset": {}, "dataset": {}}', ["stands twice"]),
    "two documents": ('{"a": 1} {"b": 2}', ["after the end"]),
    "extra brace": ('{"a": 1}}', ["after the end", "closed too early"]),
    "open comment": ('{"a": 1 /* what', ["comment is not closed", "*/"]),
    "hash comment": ('{\n# x\n"a": 1}', [":2:1", "key is needed"]),
    "deep": ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", ["deeper"]),
    "deep objects": ('{"a": ' * 3000 + "1" + "}" * 3000, ["deeper"]),
    "semicolon": ('{"a": 1; "b": 2}', ["comma is missing"]),
    "html": ("<html></html>", ["value is missing"]),
    "yaml in json": ("job_type: black_box_kd_local\n", ["not quoted"]),
    "ini in json": ("[dataset]\nseed = 1\n", ["not quoted"]),
}

# (changes to LOCAL as dotted path → value, dotted path the message must name, words it must hold)
DELETE = object()
VALUES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "no job type": ({"job_type": DELETE}, "job_type", ["missing", "black_box_kd_local"]),
    "job type typo": ({"job_type": "black_box_kd_locl"}, "job_type", ["did you mean", "black_box_kd_local"]),
    "job type case": ({"job_type": "Black_Box_KD_Local"}, "job_type", ["did you mean", "black_box_kd_local"]),
    "job type dashes": ({"job_type": "black-box-kd-local"}, "job_type", ["did you mean", "black_box_kd_local"]),
    "job type nonsense": ({"job_type": "make coffee"}, "job_type", ["no job type", "black_box_kd_api"]),
    "job type number": ({"job_type": 3}, "job_type", ["text is needed", "black_box_kd_api"]),
    "job type list": ({"job_type": ["black_box_kd_local"]}, "job_type", ["text is needed"]),
    "job type null": ({"job_type": None}, "job_type", ["missing", "black_box_kd_api"]),
    "job type empty": ({"job_type": ""}, "job_type", ["no job type", "black_box_kd_api"]),
    "old job type typo": ({"job_type": "kd_black_box_locl"}, "job_type", ["did you mean", "kd_black_box_local"]),
    "no dataset": ({"dataset": DELETE}, "dataset", ["missing", "add it"]),
    "dataset null": ({"dataset": None}, "dataset", ["section", "null"]),
    "dataset text": ({"dataset": "train.json"}, "dataset", ["section", "train.json"]),
    "dataset list": ({"dataset": []}, "dataset", ["section"]),
    "dataset number": ({"dataset": 5}, "dataset", ["section"]),
    "dataset true": ({"dataset": True}, "dataset", ["section"]),
    "models text": ({"models": "student"}, "models", ["section"]),
    "training list": ({"training": [1]}, "training", ["section"]),
    "inference text": ({"inference": "fast"}, "inference", ["section"]),
    "evaluation false": ({"evaluation": False}, "evaluation", ["section"]),
    "no models": ({"models": DELETE}, "models", ["missing", "add it"]),
    "no student": ({"models.student": DELETE}, "models.student", ["missing", "add it"]),
    "student null": ({"models.student": None}, "models.student", ["text is needed"]),
    "student number": ({"models.student": 7}, "models.student", ["text is needed"]),
    "student list": ({"models.student": ["a"]}, "models.student", ["text is needed"]),
    "student empty": ({"models.student": ""}, "models.student", ["empty"]),
    "student blank": ({"models.student": "  "}, "models.student", ["empty"]),
    "student empty object": ({"models.student": {}}, "models.student.from", ["missing", "add it"]),
    "student without layers": ({"models.student": {"from": "x"}}, "models.student.keep_layers", ["missing", "add it"]),
    "student without source": ({"models.student": {"keep_layers": 3}}, "models.student.from", ["missing"]),
    "one layer": ({"models.student": {"from": "x", "keep_layers": 1}}, "models.student.keep_layers", ["at least 2"]),
    "half a layer": ({"models.student": {"from": "x", "keep_layers": 2.5}}, "models.student.keep_layers", ["whole number"]),
    "layers text": ({"models.student": {"from": "x", "keep_layers": "many"}}, "models.student.keep_layers", ["whole number"]),
    "layers true": ({"models.student": {"from": "x", "keep_layers": True}}, "models.student.keep_layers", ["number"]),
    "layer typo": ({"models.student": {"from": "x", "keep_layer": 3}}, "models.student.keep_layer", ["keep_layers"]),
    "student config text": ({"models.student": {"config": "llama"}}, "models.student.config", ["section"]),
    "student both kinds": ({"models.student": {"config": {}, "keep_layers": 3}}, "models.student.keep_layers", ["no key"]),
    "teacher object": ({"models.teacher": {"a": 1}}, "models.teacher", ["text is needed"]),
    "teacher empty": ({"models.teacher": ""}, "models.teacher", ["empty"]),
    "teacher typo": ({"models.techer": "x"}, "models.techer", ["did you mean", "teacher"]),
    "student typo": ({"models.studnet": "x"}, "models.studnet", ["did you mean", "student"]),
    "teacher at the top": ({"teacher": "x"}, "teacher", ["belongs in `models`"]),
    "student at the top": ({"student": "x"}, "student", ["belongs in `models`"]),
    "learning rate at the top": ({"learning_rate": 1e-5}, "learning_rate", ["belongs in `training`"]),
    "epochs in dataset": ({"dataset.num_train_epochs": 3}, "dataset.num_train_epochs", ["belongs in `training`"]),
    "temperature in training": ({"training.temperature": 1}, "training.temperature", ["belongs in `inference`"]),
    "new tokens in models": ({"models.max_new_tokens": 9}, "models.max_new_tokens", ["belongs in `inference`"]),
    "path in inference": ({"inference.instruction_path": "x"}, "inference.instruction_path", ["belongs in `dataset`"]),
    "template in training": ({"training.template": "x"}, "training.template", ["belongs in `dataset`"]),
    "lora rank in training": ({"training.r": 8}, "training.r", ["belongs in `training.lora`"]),
    "job type in dataset": ({"dataset.job_type": "x"}, "dataset.job_type", ["belongs at the top level"]),
    "API key in a local job": ({"inference.api_key": "sk-never-print-this"}, "inference.api_key", ["black_box_kd_api", "remove it"]),
    "URL in a local job": ({"inference.base_url": "http://x"}, "inference.base_url", ["black_box_kd_api", "remove it"]),
    "stream in a local job": ({"inference.stream": True}, "inference.stream", ["black_box_kd_api", "remove it"]),
    "section typo": ({"trainning": {}}, "trainning", ["did you mean", "training"]),
    "section case": ({"Dataset": {}}, "Dataset", ["did you mean", "dataset"]),
    "section plural": ({"datasets": {}}, "datasets", ["did you mean", "dataset"]),
    "section of another job": ({"distillation": {"kd_ratio": 0.5}}, "distillation", ["no key", "remove it"]),
    "comment key": ({"_comment": "hi"}, "_comment", ["no key", "remove it"]),
    "path typo": ({"dataset.instruction_pth": "x"}, "dataset.instruction_pth", ["did you mean", "instruction_path"]),
    "path dashes": ({"dataset.instruction-path": "x"}, "dataset.instruction-path", ["did you mean", "instruction_path"]),
    "path number": ({"dataset.instruction_path": 3}, "dataset.instruction_path", ["text is needed"]),
    "path list": ({"dataset.instruction_path": ["a", "b"]}, "dataset.instruction_path", ["text is needed"]),
    "path empty": ({"dataset.instruction_path": ""}, "dataset.instruction_path", ["empty"]),
    "seed text": ({"dataset.seed": "lucky"}, "dataset.seed", ["whole number"]),
    "seed fraction": ({"dataset.seed": 1.5}, "dataset.seed", ["whole number"]),
    "seed true": ({"dataset.seed": True}, "dataset.seed", ["number"]),
    "seed null": ({"dataset.seed": None}, "dataset.seed", ["whole number"]),
    "share above one": ({"dataset.max_rejected_share": 5}, "dataset.max_rejected_share", ["at most 1"]),
    "share below zero": ({"dataset.max_rejected_share": -0.1}, "dataset.max_rejected_share", ["at least 0"]),
    "no samples": ({"dataset.max_samples": 0}, "dataset.max_samples", ["at least 1"]),
    "samples text": ({"dataset.max_samples": "all"}, "dataset.max_samples", ["whole number"]),
    "temperature below zero": ({"inference.temperature": -1}, "inference.temperature", ["at least 0"]),
    "temperature tiny": ({"inference.temperature": 1e-9}, "inference.temperature", ["0.001"]),
    "temperature text": ({"inference.temperature": "hot"}, "inference.temperature", ["a number is needed"]),
    "temperature list": ({"inference.temperature": [0.1, 0.9]}, "inference.temperature", ["a number is needed"]),
    "temperature true": ({"inference.temperature": True}, "inference.temperature", ["number", "true"]),
    "temperature typo": ({"inference.temprature": 1}, "inference.temprature", ["did you mean", "temperature"]),
    "temperature infinite": ({"inference.temperature": "inf"}, "inference.temperature", ["finite"]),
    "temperature not a number": ({"inference.temperature": "nan"}, "inference.temperature", ["finite"]),
    "top_p zero": ({"inference.top_p": 0}, "inference.top_p", ["more than 0"]),
    "top_p two": ({"inference.top_p": 2}, "inference.top_p", ["at most 1"]),
    "top_k zero": ({"inference.top_k": 0}, "inference.top_k", ["at least 1"]),
    "no new tokens": ({"inference.max_new_tokens": 0}, "inference.max_new_tokens", ["at least 1"]),
    "new tokens below zero": ({"inference.max_new_tokens": -5}, "inference.max_new_tokens", ["at least 1"]),
    "new tokens text": ({"inference.max_new_tokens": "512 tokens"}, "inference.max_new_tokens", ["whole number"]),
    "new tokens object": ({"inference.max_new_tokens": {"n": 1}}, "inference.max_new_tokens", ["whole number"]),
    "memory above one": ({"inference.gpu_memory_utilization": 90}, "inference.gpu_memory_utilization", ["at most 1"]),
    "eager text": ({"inference.enforce_eager": "maybe"}, "inference.enforce_eager", ["true or false"]),
    "eager number": ({"inference.enforce_eager": 7}, "inference.enforce_eager", ["true or false"]),
    "trust list": ({"inference.trust_remote_code": []}, "inference.trust_remote_code", ["true or false"]),
    "backend unknown": ({"inference.backend": "tgi"}, "inference.backend", ['"vllm"', "transformers"]),
    "backend typo": ({"inference.backend": "vlm"}, "inference.backend", ["did you mean", "vllm"]),
    "backend number": ({"inference.backend": 1}, "inference.backend", ['"vllm"']),
    "dtype unknown": ({"inference.dtype": "int8"}, "inference.dtype", ["bfloat16"]),
    "dtype typo": ({"inference.dtype": "bfloat61"}, "inference.dtype", ["did you mean", "bfloat16"]),
    "batch zero": ({"inference.batch_size": 0}, "inference.batch_size", ["at least 1"]),
    "length zero": ({"inference.max_model_len": 0}, "inference.max_model_len", ["at least 1"]),
    "system prompt list": ({"inference.system_prompt": ["a"]}, "inference.system_prompt", ["text is needed"]),
    "rate zero": ({"training.learning_rate": 0}, "training.learning_rate", ["more than 0"]),
    "rate below zero": ({"training.learning_rate": -1e-5}, "training.learning_rate", ["more than 0"]),
    "rate text": ({"training.learning_rate": "small"}, "training.learning_rate", ["a number is needed"]),
    "rate comma": ({"training.learning_rate": "2,5e-5"}, "training.learning_rate", ["a number is needed"]),
    "rate null": ({"training.learning_rate": None}, "training.learning_rate", ["a number is needed"]),
    "rate typo": ({"training.learnin_rate": 1}, "training.learnin_rate", ["did you mean", "learning_rate"]),
    "rate short": ({"training.lr": 1e-5}, "training.lr", ["no key"]),
    "epochs zero": ({"training.num_train_epochs": 0}, "training.num_train_epochs", ["more than 0"]),
    "epochs text": ({"training.num_train_epochs": "three"}, "training.num_train_epochs", ["a number is needed"]),
    "epochs true": ({"training.num_train_epochs": True}, "training.num_train_epochs", ["number"]),
    "epochs typo": ({"training.num_epochs": 3}, "training.num_epochs", ["did you mean", "num_train_epochs"]),
    "steps zero": ({"training.max_steps": 0}, "training.max_steps", ["at least 1"]),
    "batch fraction": ({"training.per_device_train_batch_size": 0.5}, "training.per_device_train_batch_size", ["whole number"]),
    "batch typo": ({"training.per_device_batch_size": 1}, "training.per_device_batch_size", ["per_device_train_batch_size"]),
    "accumulation zero": ({"training.gradient_accumulation_steps": 0}, "training.gradient_accumulation_steps", ["at least 1"]),
    "decay below zero": ({"training.weight_decay": -1}, "training.weight_decay", ["at least 0"]),
    "beta one": ({"training.adam_beta1": 1}, "training.adam_beta1", ["less than 1"]),
    "warm-up above one": ({"training.warmup_ratio": 10}, "training.warmup_ratio", ["at most 1"]),
    "schedule unknown": ({"training.lr_scheduler_type": "magic"}, "training.lr_scheduler_type", ["cosine"]),
    "schedule typo": ({"training.lr_scheduler_type": "cosin"}, "training.lr_scheduler_type", ["did you mean", '"cosine"']),
    "optimiser unknown": ({"training.optim": "lion"}, "training.optim", ["adamw_torch"]),
    "save never": ({"training.save_steps": 0}, "training.save_steps", ["at least 1"]),
    "save limit zero": ({"training.save_total_limit": 0}, "training.save_total_limit", ["at least 1"]),
    "bf16 maybe": ({"training.bf16": "maybe"}, "training.bf16", ['true, false or "auto"']),
    "bf16 list": ({"training.bf16": [1]}, "training.bf16", ['true, false or "auto"']),
    "packing text": ({"training.packing": "tight"}, "training.packing", ["true or false"]),
    "length below zero": ({"training.max_length": -1}, "training.max_length", ["at least 1"]),
    "chunk too small": ({"training.loss_chunk_bytes": 10}, "training.loss_chunk_bytes", ["at least"]),
    "lora true": ({"training.lora": True}, "training.lora", ["section"]),
    "lora rank zero": ({"training.lora": {"r": 0}}, "training.lora.r", ["at least 1"]),
    "lora dropout one": ({"training.lora": {"dropout": 1}}, "training.lora.dropout", ["less than 1"]),
    "lora typo": ({"training.lora": {"rank": 8}}, "training.lora.rank", ["no key"]),
    "lora modules number": ({"training.lora": {"target_modules": 3}}, "training.lora.target_modules", ["all-linear"]),
    "lora module number": ({"training.lora": {"target_modules": [3]}}, "training.lora.target_modules.0", ["text is needed"]),
    "deepspeed": ({"training.deepspeed": "zero2.json"}, "training.deepspeed", ["no key"]),
    "held out below zero": ({"evaluation.heldout": -3}, "evaluation.heldout", ["at least 0"]),
    "held out text": ({"evaluation.heldout": "some"}, "evaluation.heldout", ["a number is needed"]),
    "evaluation typo": ({"evaluation.held_out": 3}, "evaluation.held_out", ["did you mean", "heldout"]),
    "output dir number": ({"output_dir": 3}, "output_dir", ["text is needed"]),
    "output dir empty": ({"output_dir": ""}, "output_dir", ["empty"]),
    "schema number": ({"$schema": 3}, "$schema", ["text is needed"]),
    "old name and new name": (
        {"training.max_length": 10, "training.max_seq_length": 20}, "training.max_seq_length", ["both are given", "keep"]
    ),
    "unset variable": ({"models.teacher": "${env:NO_SUCH_VARIABLE}"}, "models.teacher", ["not set", "export"]),
    "nameless variable": ({"models.teacher": "${env:}"}, "models.teacher", ["${env:NAME}"]),
    "nothing to train on": ({"models.teacher": DELETE, "dataset.instruction_path": DELETE}, "", ["models.teacher", "labeled_path"]),
    "no prompts": ({"dataset.instruction_path": DELETE}, "", ["dataset.instruction_path"]),
}  # fmt: skip

API_VALUES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "no URL": ({"inference.base_url": DELETE}, "inference.base_url", ["missing", "add it"]),
    "URL without scheme": ({"inference.base_url": "localhost:8000"}, "inference.base_url", ["http://"]),
    "URL number": ({"inference.base_url": 8000}, "inference.base_url", ["text is needed"]),
    "URL empty": ({"inference.base_url": ""}, "inference.base_url", ["empty"]),
    "key number": ({"inference.api_key": 123456789}, "inference.api_key", ["text is needed"]),
    "key list": ({"inference.api_key": ["sk-never-print-this"]}, "inference.api_key", ["text is needed"]),
    "key typo": ({"inference.apikey": "sk-never-print-this"}, "inference.apikey", ["did you mean", "api_key"]),
    "key at the top": ({"api_key": "sk-never-print-this"}, "api_key", ["belongs in `inference`"]),
    "key unset": ({"inference.api_key": "${env:NO_SUCH_KEY}"}, "inference.api_key", ["not set", "export"]),
    "stream text": ({"inference.stream": "sometimes"}, "inference.stream", ["true or false"]),
    "timeout zero": ({"inference.timeout": 0}, "inference.timeout", ["more than 0"]),
    "retries below zero": ({"inference.max_retries": -1}, "inference.max_retries", ["at least 0"]),
    "concurrency zero": ({"inference.max_concurrency": 0}, "inference.max_concurrency", ["at least 1"]),
    "vLLM option": ({"inference.enforce_eager": True}, "inference.enforce_eager", ["black_box_kd_local"]),
    "nothing at all": ({"inference": DELETE}, "", ["inference.base_url", "labeled_path"]),
    "prompts missing": ({"dataset": {}}, "", ["dataset.instruction_path"]),
}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(base))
    for path, value in changes.items():
        *sections, key = path.split(".")
        target = config
        for section in sections:
            target = target.setdefault(section, {})
        if value is DELETE:
            target.pop(key, None)
        else:
            target[key] = value
    return config


def check(path: Path, capsys: pytest.CaptureFixture[str], words: list[str], *arguments: str) -> str:
    code = main(["validate", str(path), *arguments])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert not out
    assert "Traceback" not in err
    assert str(path) in err or "--set" in err or "command line" in err
    missing = [word for word in words if word not in err]
    assert not missing, f"{missing} not in:\n{err}"
    assert "sk-never-print-this" not in err
    assert "123456789" not in err
    return err


@pytest.mark.parametrize("name", SYNTAX)
def test_syntax(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = SYNTAX[name]
    path = tmp_path / "kd.json"
    path.write_text(text)
    check(path, capsys, words)


@pytest.mark.parametrize(
    ("base", "changes", "key", "words"),
    [
        *(pytest.param(LOCAL, *case, id=f"local {name}") for name, case in VALUES.items()),
        *(pytest.param(API, *case, id=f"api {name}") for name, case in API_VALUES.items()),
    ],
)
def test_values(
    base: dict[str, Any],
    changes: dict[str, Any],
    key: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = changed(base, changes)
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(config, indent=2))
    err = check(path, capsys, words)
    # A student of the wrong shape lacks one key and has another too many, or lacks both.
    assert err.count(": models.student.") > 1 or "1 problem in the config" in err, err
    if key:
        assert f" {key}: " in err, err
        # The line is the one on which the key stands, or that of the section that lacks it.
        line = int(err.split(f"{path}:")[1].split(":")[0])
        text = path.read_text().splitlines()[line - 1]
        last = key.split(".")[-1]
        assert f'"{last}"' in text or "missing" in err or last.isdigit(), (line, text)


def test_there_are_enough_cases() -> None:
    assert len(SYNTAX) + len(VALUES) + len(API_VALUES) >= 150


def test_all_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picked = [name for name in VALUES if name.startswith(("temperature in", "rate typo", "seed text", "path typo"))]
    picked += ["backend typo", "epochs zero", "student without layers", "section typo", "job type typo", "bf16 maybe"]
    changes = {path: value for name in picked for path, value in VALUES[name][0].items()}
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(changed(LOCAL, changes), indent=1))
    err = check(path, capsys, [word for name in picked for word in VALUES[name][2]])
    assert f"{len(changes)} problems" in err


FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "not UTF-8": ("kd.json", b'{"a": "\xff"}', [":1", "UTF-8"]),
    "UTF-16": ("kd.json", '{"a": 1}'.encode("utf-16"), ["UTF-8"]),
    "binary": ("kd.json", bytes(range(128, 256)), ["UTF-8"]),
    "zero bytes": ("kd.json", b"\x00\x00\x00", ["value is missing"]),
    "BOM and garbage": ("kd.json", b"\xef\xbb\xbf nope", ["not quoted"]),
    "unknown suffix": ("kd.txt", b"{}", [".json", ".yaml"]),
    "no suffix": ("kd", b"{}", [".json", ".toml"]),
    "YAML tab": ("kd.yaml", b"a:\n\tb: 1\n", [":2", "YAML"]),
    "YAML colon": ("kd.yaml", b"a: b: c\n", [":1", "YAML"]),
    "YAML twice": ("kd.yaml", b"a: 1\na: 2\n", [":2", "twice"]),
    "YAML list": ("kd.yml", b"- 1\n- 2\n", ["list"]),
    "YAML number key": ("kd.yaml", b"1: x\n", [":1", "quote"]),
    "YAML two documents": ("kd.yaml", b"a: 1\n---\nb: 2\n", ["YAML"]),
    "YAML python": ("kd.yaml", b"a: !!python/object/apply:os.system ['true']\n", ["YAML"]),
    "YAML open quote": ("kd.yaml", b'a: "x\n', ["YAML"]),
    "YAML only comments": ("kd.yaml", b"# nothing\n", ["no value"]),
    "YAML anchor": ("kd.yaml", b"a: *nowhere\n", ["YAML", ":1"]),
    "YAML typo": ("kd.yaml", b"job_type: black_box_kd_local\ndataset:\n  sed: 1\nmodels:\n  student: x\n", [":3", "seed"]),
    "TOML syntax": ("kd.toml", b"a = \n", [":1", "TOML"]),
    "TOML twice": ("kd.toml", b"a = 1\na = 2\n", ["TOML"]),
    "TOML bare text": ("kd.toml", b"a = hello\n", ["TOML"]),
    "TOML typo": ("kd.toml", b'job_type = "black_box_kd_local"\n[dataset]\nsed = 1\n[models]\nstudent = "x"\n', [":3", "seed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, content, words = FILES[name]
    path = tmp_path / file
    path.write_bytes(content)
    check(path, capsys, words)


def test_missing_file_and_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(tmp_path / "nowhere.json", capsys, ["no such file", "easydistill init"])
    (tmp_path / "folder.json").mkdir()
    check(tmp_path / "folder.json", capsys, ["directory"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rate", ["path=value", "--set training.learning_rate=1e-5"]),
        ("=3", ["path=value"]),
        ("training..x=3", ["path=value"]),
        ("training.learning_rate=fast", ["--set", "training.learning_rate", "a number is needed"]),
        ("training.lerning_rate=1", ["--set", "did you mean"]),
        ("job_type.x=1", ["--set", "not a section"]),
        ("job_type=nothing", ["--set", "no job type"]),
        ("models.student.keep_layers=3", ["--set", "not a section"]),
    ],
)
def test_overrides(override: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(LOCAL))
    check(path, capsys, words, "--set", override)


def test_no_config_and_two_configs(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["validate"], ["validate", "a.json", "--config", "b.json"]):
        assert main(arguments) == 2
        assert "config" in capsys.readouterr().err


# Any JSON value.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_explained(
    data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = data.draw(st.sampled_from([LOCAL, API]))
    section = data.draw(st.sampled_from(["dataset", "inference", "models", "training", "evaluation"]))
    key = data.draw(st.sampled_from(["", ".seed", ".student", ".learning_rate", ".lora", ".temperature", ".x"]))
    config = changed(base, {section + key: data.draw(json_values)})
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(config))
    assert main(["validate", str(path)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), cut=st.integers(0, 4), text=st.text(max_size=3))
def test_any_slip_of_the_pen_is_accepted_or_explained(
    at: int, cut: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = json.dumps(LOCAL, indent=1)
    path = tmp_path / "kd.json"
    path.write_text(source[:at] + text + source[at + cut :], encoding="utf-8", errors="surrogatepass")
    assert main(["validate", str(path)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
