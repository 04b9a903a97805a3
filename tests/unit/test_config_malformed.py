"""Configs with mistakes in them: exit code 2, file and line, key, problem, hint. Never a traceback, never a secret.

Files that cannot be parsed at all are in `test_config_syntax.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr
from tests.support.configs import API, DELETE, LOCAL, SECRET, changed, complaints, line_of, write

import easydistill
from easydistill import api
from easydistill.cli import main
from easydistill.config.identity import SECRET_KEYS
from easydistill.config.reading.fields import members_of, models_in
from easydistill.errors import ConfigError

BOTH = "black_box_kd_api, black_box_kd_local"
# name: (changes to LOCAL, the key complained about, part of the problem, part of the hint)
Case = tuple[dict[str, Any], str, str, str]
JOB_TYPES: dict[str, Case] = {
    "missing": ({"job_type": DELETE}, "job_type", "missing", BOTH),
    "misspelt key": ({"job_type": DELETE, "jobtype": "x"}, "job_type", "missing", "write it as 'jobtype'"),
    "typo": ({"job_type": "black_box_kd_locl"}, "job_type", "no job type", 'did you mean "black_box_kd_local"'),
    "case": ({"job_type": "Black_Box_KD_Local"}, "job_type", "no job type", 'did you mean "black_box_kd_local"'),
    "dashes": ({"job_type": "black-box-kd-local"}, "job_type", "no job type", 'did you mean "black_box_kd_local"'),
    "spaces": ({"job_type": "black box kd local"}, "job_type", "no job type", 'did you mean "black_box_kd_local"'),
    "old name": ({"job_type": "kd_black_box_locl"}, "job_type", "no job type", 'did you mean "kd_black_box_local"'),
    "nonsense": ({"job_type": "make coffee"}, "job_type", "no job type", BOTH),
    "empty": ({"job_type": ""}, "job_type", "no job type", BOTH),
    "long": ({"job_type": "x" * 10_000}, "job_type", "no job type", BOTH),
    "number": ({"job_type": 3}, "job_type", "text is needed here, not 3", BOTH),
    "true": ({"job_type": True}, "job_type", "text is needed here, not true", BOTH),
    "list": ({"job_type": ["black_box_kd_local"]}, "job_type", "text is needed", BOTH),
    "object": ({"job_type": {"name": "x"}}, "job_type", "text is needed", BOTH),
    "null": ({"job_type": None}, "job_type", "text is needed here, not null", BOTH),
}
SECTIONS: dict[str, Case] = {
    "no dataset": ({"dataset": DELETE}, "dataset", "missing", "Seed data"),
    "dataset null": ({"dataset": None}, "dataset", "a section { … } is needed here, not null", "keys of `dataset`"),
    "dataset text": ({"dataset": "train.json"}, "dataset", 'not "train.json"', "keys of `dataset`"),
    "dataset list": ({"dataset": []}, "dataset", "a section { … } is needed here, not []", "keys of `dataset`"),
    "dataset number": ({"dataset": 5}, "dataset", "a section { … } is needed here, not 5", "keys of `dataset`"),
    "dataset true": ({"dataset": True}, "dataset", "not true", "keys of `dataset`"),
    "models text": ({"models": "student"}, "models", "a section", "It needs student"),
    "models list": ({"models": [{"student": "x"}]}, "models", "a section", "It needs student"),
    "no models": ({"models": DELETE}, "models", "missing", "It needs student"),
    "training list": ({"training": [1]}, "training", "a section { … } is needed here, not [1]", "keys of `training`"),
    "training null": ({"training": None}, "training", "not null", "remove the key to get the default"),
    "inference text": ({"inference": "fast"}, "inference", "a section", "keys of `inference`"),
    "inference list": ({"inference": [{"api_key": SECRET}]}, "inference", "a section", "keys of `inference`"),
    "evaluation false": ({"evaluation": False}, "evaluation", "not false", "keys of `evaluation`"),
    "evaluation zero": ({"evaluation": 0}, "evaluation", "not 0", "keys of `evaluation`"),
    "lora true": ({"training.lora": True}, "training.lora", "not true", "keys of `lora`"),
    "lora list": ({"training.lora": ["q_proj"]}, "training.lora", "a section", "keys of `lora`"),
    "lora text": ({"training.lora": "all"}, "training.lora", "a section", "keys of `lora`"),
}
UNKNOWN_KEYS: dict[str, Case] = {
    "section typo": ({"trainning": {}}, "trainning", "no key", "did you mean 'training'"),
    "section case": ({"Dataset": {}}, "Dataset", "no key", "did you mean 'dataset'"),
    "section plural": ({"datasets": {}}, "datasets", "no key", "did you mean 'dataset'"),
    "section singular": ({"model": {"student": "x"}}, "model", "no key", "did you mean 'models'"),
    "section of another job": ({"distillation": {"kd_ratio": 0.5}}, "distillation", "no key", "a key of white_box_kd_local"),
    "comment": ({"_comment": "hi"}, "_comment", "no key", "remove it; the keys here are answers_cache, dataset"),
    "empty": ({"training": {"": 1}}, "training.", "no key ''", "remove it; the keys here"),
    "umlauts": ({"dataset.größe": 1}, "dataset.größe", "no key 'größe'", "remove it; the keys here"),
    "named like a union's member": ({"dataset.pruned": 1}, "dataset.pruned", "no key 'pruned'", "remove it"),
    "named like a type": ({"dataset.bool": 1}, "dataset.bool", "no key 'bool'", "remove it"),
    "with a bracket": ({"dataset.a[0]": 1}, "dataset.a[0]", "no key 'a[0]'", "remove it"),
    "path typo": ({"dataset.instruction_pth": "x"}, "dataset.instruction_pth", "no key", "'instruction_path'"),
    "path dashes": ({"dataset.instruction-path": "x"}, "dataset.instruction-path", "no key", "'instruction_path'"),
    "path case": ({"dataset.InstructionPath": "x"}, "dataset.InstructionPath", "no key", "'instruction_path'"),
    "teacher typo": ({"models.techer": "x"}, "models.techer", "no key", "did you mean 'teacher'"),
    "student typo": ({"models.studnet": "x"}, "models.studnet", "no key", "did you mean 'student'"),
    "temperature typo": ({"inference.temprature": 1}, "inference.temprature", "no key", "mean 'temperature'"),
    "rate typo": ({"training.learnin_rate": 1}, "training.learnin_rate", "no key", "mean 'learning_rate'"),
    "rate short": ({"training.lr": 1e-5}, "training.lr", "no key", "learning_rate"),
    "epochs typo": ({"training.num_epochs": 3}, "training.num_epochs", "no key", "mean 'num_train_epochs'"),
    "batch typo": (
        {"training.per_device_batch_size": 1}, "training.per_device_batch_size", "no key", "per_device_train_batch_size"
    ),
    "evaluation typo": ({"evaluation.held_out": 3}, "evaluation.held_out", "no key", "did you mean 'heldout'"),
    "lora typo": ({"training.lora.droput": 0.1}, "training.lora.droput", "no key", "did you mean 'dropout'"),
    "lora rank": ({"training.lora.rank": 8}, "training.lora.rank", "no key", "dropout, r, target_modules"),
    "deepspeed": ({"training.deepspeed": "zero2.json"}, "training.deepspeed", "no key", "belongs in `launch`"),
    "teacher at the top": ({"teacher": "x"}, "teacher", "no key", "belongs in `models`"),
    "student at the top": ({"student": "x"}, "student", "no key", "belongs in `models`"),
    "rate at the top": ({"learning_rate": 1e-5}, "learning_rate", "no key", "belongs in `training`"),
    "epochs in dataset": ({"dataset.num_train_epochs": 3}, "dataset.num_train_epochs", "no key", "in `training`"),
    "temperature in training": ({"training.temperature": 1}, "training.temperature", "no key", "in `inference`"),
    "new tokens in models": ({"models.max_new_tokens": 9}, "models.max_new_tokens", "no key", "in `inference`"),
    "path in inference": ({"inference.instruction_path": "x"}, "inference.instruction_path", "no key", "in `dataset`"),
    "template in training": ({"training.template": "x"}, "training.template", "no key", "in `dataset`"),
    "held out in dataset": ({"dataset.heldout": 5}, "dataset.heldout", "no key", "belongs in `evaluation`"),
    "rank in training": ({"training.r": 8}, "training.r", "no key", "belongs in `training.lora`"),
    "layers in models": ({"models.keep_layers": 8}, "models.keep_layers", "no key", "belongs in `models.student`"),
    "job type in dataset": ({"dataset.job_type": "x"}, "dataset.job_type", "no key", "at the top level"),
    "old name elsewhere": ({"dataset.max_seq_length": 9}, "dataset.max_seq_length", "no key", "`training.max_length`"),
    "old lora name": ({"training.lora_alpha": 9}, "training.lora_alpha", "no key", "`training.lora.alpha`"),
    "typo elsewhere": ({"training.temprature": 1}, "training.temprature", "no key", "mean `inference.temperature`"),
    "API key": ({"inference.api_key": SECRET}, "inference.api_key", "no key", "types, such as black_box_kd_api"),
    "key of two jobs": ({"rewards": {}}, "rewards", "no key", "`rewards` is a key of ppo and grpo jobs and has no effect"),
    "key of many jobs": ({"synthesis": {}}, "synthesis", "no key", "job types, such as cogpo, cot_"),
    "URL": ({"inference.base_url": "http://x"}, "inference.base_url", "no key", "remove it, or change job_type"),
    "stream": ({"inference.stream": True}, "inference.stream", "no key", "has no effect here"),
    "old and new name": (
        {"training.max_length": 10, "training.max_seq_length": 20},
        "training.max_seq_length",
        "another name of max_length, and both are given",
        "keep max_length",
    ),
    "two old names": (
        {"training.max_seq_len": 10, "training.max_seq_length": 20},
        "training.max_seq_len",
        "another name of max_length, and both are given",
        "keep max_length",
    ),
    "labelled and labeled": (
        {"dataset.labeled_path": "a.json", "dataset.labelled_path": "b.json"},
        "dataset.labelled_path",
        "both are given",
        "keep labeled_path",
    ),
    "lora_alpha and alpha": (
        {"training.lora": {"alpha": 16, "lora_alpha": 32}}, "training.lora.lora_alpha", "both are given", "keep alpha"
    ),
    "max_tokens and max_new_tokens": (
        {"inference.max_tokens": 1, "inference.max_new_tokens": 1}, "inference.max_tokens", "both", "keep max_new_tokens"
    ),
}  # fmt: skip
STUDENTS: dict[str, Case] = {
    "missing": ({"models.student": DELETE}, "models.student", "missing", '"keep_layers": n'),
    "null": ({"models.student": None}, "models.student", "text or a section { … } is needed here, not null", '"from"'),
    "number": ({"models.student": 7}, "models.student", "text or a section { … } is needed here, not 7", '"from"'),
    "list": ({"models.student": ["a"]}, "models.student", "text or a section", '"keep_layers": n'),
    "true": ({"models.student": True}, "models.student", "text or a section { … } is needed here, not true", '"from"'),
    "empty text": ({"models.student": ""}, "models.student", "empty", "give a value"),
    "blank": ({"models.student": "  "}, "models.student", "empty", "give a value"),
    "no layers": ({"models.student": {"from": "x"}}, "models.student.keep_layers", "missing", "Number of layers to keep"),
    "no source": ({"models.student": {"keep_layers": 3}}, "models.student.from", "missing", "whose layers are kept"),
    "source number": ({"models.student": {"from": 1, "keep_layers": 3}}, "models.student.from", "text", '"1"'),
    "source null": ({"models.student": {"from": None, "keep_layers": 3}}, "models.student.from", "text", "one text"),
    "one layer": ({"models.student": {"from": "x", "keep_layers": 1}}, "models.student.keep_layers", "1", "at least 2"),
    "half a layer": (
        {"models.student": {"from": "x", "keep_layers": 2.5}}, "models.student.keep_layers", "whole number", "e.g. 2"
    ),
    "layers text": (
        {"models.student": {"from": "x", "keep_layers": "many"}}, "models.student.keep_layers", "whole number", "e.g. 8"
    ),
    "layers true": (
        {"models.student": {"from": "x", "keep_layers": True}}, "models.student.keep_layers", "not true", "a number"
    ),
    "layers list": (
        {"models.student": {"from": "x", "keep_layers": [0, 1]}}, "models.student.keep_layers", "whole number", "e.g. 8"
    ),
    "two forms": (
        {"models.student": {"config": {"model_type": "llama"}, "keep_layers": 3}},
        "models.student.keep_layers",
        "no key",
        "does not go together with `config`: keep one",
    ),
    "two sources": (
        {"models.student": {"config": {"model_type": "llama"}, "from": "x"}},
        "models.student.from",
        "no key",
        "does not go together with `config`: keep one",
    ),
    "seed of the wrong form": (
        {"models.student": {"from": "x", "keep_layers": 3, "vocab_size": 9}},
        "models.student.vocab_size",
        "no key",
        "does not go together with `from`: keep one",
    ),
    "config text": ({"models.student": {"config": "llama"}}, "models.student.config", "a section", "`config`"),
    "config null": ({"models.student": {"config": None}}, "models.student.config", "a section", "`config`"),
    "config empty": ({"models.student": {"config": {}}}, "models.student.config", "model_type", '"model_type": "llama"'),
    "config type": (
        {"models.student": {"config": {"model_type": 3}}}, "models.student.config", "model_type", '"model_type": "llama"'
    ),
    "vocabulary zero": (
        {"models.student": {"config": {"model_type": "llama"}, "vocab_size": 0}},
        "models.student.vocab_size",
        "out of range",
        "at least 1",
    ),
    "key named like a form": (
        {"models.student": {"config": {"model_type": "llama"}, "fresh": 1}},
        "models.student.fresh",
        "no key 'fresh'",
        "config, seed, tokenizer, vocab_size",
    ),
    "teacher object": ({"models.teacher": {"from": "x"}}, "models.teacher", "text is needed", "one text"),
    "teacher list": ({"models.teacher": ["a", "b"]}, "models.teacher", "text is needed", "one text"),
    "teacher empty": ({"models.teacher": ""}, "models.teacher", "empty", "remove the key"),
}  # fmt: skip
# key, value, part of the problem, part of the hint
VALUES: list[tuple[str, Any, str, str]] = [
    ("dataset.instruction_path", 3, "text is needed here, not 3", '"3"'),
    ("dataset.instruction_path", ["a", "b"], "text is needed", "give one text"),
    ("dataset.instruction_path", {"path": "a"}, "text is needed", "give one text"),
    ("dataset.instruction_path", "", "empty", "give a value, or remove the key"),
    ("dataset.labeled_path", False, "text is needed here, not false", "one text"),
    ("dataset.template", 1.5, "text is needed here, not 1.5", '"1.5"'),
    ("dataset.seed", "lucky", 'a whole number is needed here, not "lucky"', "e.g. 42"),
    ("dataset.seed", 1.5, "a whole number is needed here, not 1.5", "e.g. 2"),
    ("dataset.seed", True, "a number is needed here, not true", "write a number"),
    ("dataset.seed", None, "a whole number is needed here, not null", "default, 42"),
    ("dataset.seed", -1, "-1 is out of range", "at least 0"),
    ("dataset.seed", 2**32, "out of range", "at most 4294967295"),
    ("dataset.seed", 10**200, "out of range", "at most 4294967295"),
    ("dataset.max_rejected_share", 5, "5 is out of range", "at most 1"),
    ("dataset.max_rejected_share", -0.1, "-0.1 is out of range", "at least 0"),
    ("dataset.max_rejected_share", "5%", "a number is needed", "e.g. 0.05"),
    ("dataset.max_samples", 0, "0 is out of range", "at least 1"),
    ("dataset.max_samples", "all", "whole number", "e.g. 8"),
    ("inference.temperature", -1, "-1 is out of range", "at least 0"),
    ("inference.temperature", 1e-9, "too small", "use 0 for greedy"),
    ("inference.temperature", "hot", 'a number is needed here, not "hot"', "e.g. 0.8"),
    ("inference.temperature", [0.1, 0.9], "a number is needed here, not [0.1, 0.9]", "e.g. 0.8"),
    ("inference.temperature", True, "a number is needed here, not true", "write a number"),
    ("inference.temperature", None, "not null", "default, 0.8"),
    ("inference.temperature", "inf", "not a finite number", "such as 0.5"),
    ("inference.temperature", "nan", "not a finite number", "such as 0.5"),
    ("inference.temperature", float("inf"), "Infinity is not", "finite number"),
    ("inference.top_p", 0, "0 is out of range", "more than 0"),
    ("inference.top_p", 2, "2 is out of range", "at most 1"),
    ("inference.top_p", True, "not true", "write a number"),
    ("inference.top_k", 0, "0 is out of range", "at least 1"),
    ("inference.top_k", -1, "-1 is out of range", "at least 1"),
    ("inference.max_new_tokens", 0, "0 is out of range", "at least 1"),
    ("inference.max_new_tokens", -5, "-5 is out of range", "at least 1"),
    ("inference.max_new_tokens", "512 tokens", "whole number", "e.g. 512"),
    ("inference.max_new_tokens", {"n": 1}, "whole number", "e.g. 512"),
    ("inference.max_new_tokens", False, "not false", "write a number"),
    ("inference.gpu_memory_utilization", 90, "90 is out of range", "at most 1"),
    ("inference.gpu_memory_utilization", 0, "0 is out of range", "more than 0"),
    ("inference.gpu_memory_utilization", True, "not true", "write a number"),
    ("inference.enforce_eager", "maybe", 'true or false is needed here, not "maybe"', "without quotes"),
    ("inference.enforce_eager", 7, "true or false is needed here, not 7", "write true or false"),
    ("inference.trust_remote_code", [], "true or false is needed here, not []", "write true or false"),
    ("inference.trust_remote_code", None, "true or false is needed here, not null", "default, false"),
    ("inference.backend", "tgi", '"tgi" is not one of', '"auto", "ray", "transformers" or "vllm"'),
    ("inference.backend", "vlm", '"vlm" is not one of', 'did you mean "vllm"'),
    ("inference.backend", "VLLM", '"VLLM" is not one of', 'did you mean "vllm"'),
    ("inference.backend", 1, "1 is not one of", '"vllm"'),
    ("inference.backend", None, "null is not one of", '"vllm"'),
    ("inference.dtype", "int8", '"int8" is not one of', '"bfloat16"'),
    ("inference.dtype", "bfloat61", "is not one of", 'did you mean "bfloat16"'),
    ("inference.batch_size", 0, "0 is out of range", "at least 1"),
    ("inference.seed", -1, "-1 is out of range", "at least 0"),
    ("inference.max_model_len", 0, "0 is out of range", "at least 1"),
    ("inference.tensor_parallel_size", -1, "-1 is out of range", "at least 0"),
    ("inference.system_prompt", ["a"], "text is needed", "one text"),
    ("inference.system_prompt", 5, "text is needed here, not 5", '"5"'),
    ("training.learning_rate", 0, "0 is out of range", "more than 0"),
    ("training.learning_rate", -1e-5, "out of range", "more than 0"),
    ("training.learning_rate", "small", "a number is needed", "e.g. 2e-05"),
    ("training.learning_rate", "2,5e-5", "a number is needed", "e.g. 2e-05"),
    ("training.learning_rate", None, "not null", "default, 2e-05"),
    ("training.learning_rate", {"peak": 1}, "a number is needed", "e.g. 2e-05"),
    ("training.num_train_epochs", 0, "0 is out of range", "more than 0"),
    ("training.num_train_epochs", "three", "a number is needed", "e.g. 3"),
    ("training.num_train_epochs", True, "not true", "write a number"),
    ("training.max_steps", 0, "0 is out of range", "at least 1"),
    ("training.max_steps", -1, "-1 is out of range", "at least 1"),
    ("training.per_device_train_batch_size", 0.5, "whole number is needed here, not 0.5", "e.g. "),
    ("training.gradient_accumulation_steps", 0, "0 is out of range", "at least 1"),
    ("training.weight_decay", -1, "-1 is out of range", "at least 0"),
    ("training.adam_beta1", 1, "1 is out of range", "less than 1"),
    ("training.adam_beta1", False, "not false", "write a number"),
    ("training.adam_beta2", -0.1, "out of range", "at least 0"),
    ("training.adam_epsilon", 0, "0 is out of range", "more than 0"),
    ("training.max_grad_norm", -1, "-1 is out of range", "at least 0"),
    ("training.warmup_ratio", 10, "10 is out of range", "at most 1"),
    ("training.warmup_steps", 10.5, "10.5 is neither a share nor a count", "a share below 1, or a whole number"),
    ("training.warmup_steps", -1, "-1 is out of range", "at least 0"),
    ("training.lr_scheduler_type", "magic", '"magic" is not one of', '"cosine"'),
    ("training.lr_scheduler_type", "cosin", '"cosin" is not one of', 'did you mean "cosine"'),
    ("training.lr_scheduler_type", "", '"" is not one of', '"linear", "cosine"'),
    ("training.optim", "lion", '"lion" is not one of', '"adamw_torch"'),
    ("training.save_steps", 0, "0 is out of range", "at least 1"),
    ("training.save_total_limit", 0, "0 is out of range", "at least 1"),
    ("training.logging_steps", "often", "whole number", "e.g. 10"),
    ("training.dataloader_num_workers", -1, "-1 is out of range", "at least 0"),
    ("training.bf16", "maybe", '"maybe" is not', 'true, false or "auto"'),
    ("training.bf16", "aut", '"aut" is not', 'did you mean "auto"'),
    ("training.bf16", [1], "[1] is not", 'true, false or "auto"'),
    ("training.bf16", 5, "5 is not", 'true, false or "auto"'),
    ("training.bf16", None, "null is not", 'true, false or "auto"'),
    ("training.packing", "tight", "true or false is needed", "without quotes"),
    ("training.gradient_checkpointing", 0.5, "true or false is needed", "write true or false"),
    ("training.max_length", -1, "-1 is out of range", "at least 1"),
    ("training.max_length", "1e3", "whole number", "e.g. 1024"),
    ("training.max_length", "${env:PATH}", "whole number is needed here, not \"${env:PATH}\"", "e.g. 1024"),
    ("training.max_seq_length", "long", "whole number", "e.g. 1024"),
    ("training.max_seq_len", 0, "0 is out of range", "at least 1"),
    ("training.seed", -3, "-3 is out of range", "at least 0"),
    ("training.loss_chunk_bytes", 10, "10 is out of range", "at least 1048576"),
    ("training.loss_chunk_bytes", True, "not true", "write a number"),
    ("training.output_dir", [], "text is needed", "one text"),
    ("training.lora.r", 0, "0 is out of range", "at least 1"),
    ("training.lora.r", "16x", "whole number", "e.g. 16"),
    ("training.lora.r", None, "not null", "default, 16"),
    ("training.lora.alpha", -1, "-1 is out of range", "more than 0"),
    ("training.lora.lora_alpha", "big", "a number is needed", "e.g. 32"),
    ("training.lora.dropout", 1, "1 is out of range", "less than 1"),
    ("training.lora.dropout", False, "not false", "write a number"),
    ("training.lora.target_modules", 3, "3 is not", 'a list [ … ] or "all-linear"'),
    ("training.lora.target_modules", "q_proj", '"q_proj" is not', 'a list [ … ] or "all-linear"'),
    ("training.lora.target_modules", "all_linear", '"all_linear" is not', 'did you mean "all-linear"'),
    ("training.lora.target_modules", [], "the list is empty", "give a value, or remove the key"),
    ("training.train_parts", "vision", "a list [ … ] is needed", "[ … ]"),
    ("launch.offload", "optimizer", "a list [ … ] is needed", "[ … ]"),
    ("evaluation.heldout", -3, "-3 is out of range", "at least 0"),
    ("evaluation.heldout", "some", "a number is needed", "e.g. 0.05"),
    ("evaluation.heldout", True, "not true", "write a number"),
    ("evaluation.heldout", 1.5, "1.5 is neither a share nor a count", "a share below 1, or a whole number"),
    ("evaluation.enabled", "perhaps", "true or false is needed", "without quotes"),
    ("evaluation.batch_size", 0, "0 is out of range", "at least 1"),
    ("output_dir", 3, "text is needed here, not 3", '"3"'),
    ("output_dir", "", "empty", "give a value, or remove the key"),
    ("output_dir", "a\0b", "NUL character", "remove it"),
    ("$schema", 3, "text is needed here, not 3", '"3"'),
    ("models.teacher", "${env:NO_SUCH_VARIABLE}", "'NO_SUCH_VARIABLE' is not set", "export NO_SUCH_VARIABLE=…"),
    ("models.teacher", "${env:EMPTY_VARIABLE}", "'EMPTY_VARIABLE' is empty", "export EMPTY_VARIABLE=…"),
    ("models.teacher", "${env:}", "has no name", "write ${env:NAME}"),
    ("models.teacher", "a/${env:HOME", "not closed", "end it with }"),
    ("models.teacher", "$HOME", "$HOME is not filled in", "write ${env:HOME}"),
    ("models.teacher", "${HOME}", "${HOME} is not filled in", "write ${env:HOME}"),
    ("models.teacher", "${ENV:HOME}", "${ENV:HOME} is not filled in", "write ${env:HOME}"),
    ("training.learning_rate", "${env:NO_SUCH_VARIABLE}", "is not set", "export NO_SUCH_VARIABLE=…"),
]  # fmt: skip
API_CASES: dict[str, Case] = {
    "no URL": ({"inference.base_url": DELETE}, "inference.base_url", "missing", "Root of the API"),
    "URL without scheme": ({"inference.base_url": "localhost:8000"}, "inference.base_url", "not a URL", "http://"),
    "URL of another scheme": ({"inference.base_url": "ftp://x"}, "inference.base_url", "not a URL", "http://"),
    "URL without host": ({"inference.base_url": "http://"}, "inference.base_url", "not a URL", "e.g. http://localhost"),
    "URL number": ({"inference.base_url": 8000}, "inference.base_url", "text or a list", "Root of the API"),
    "URL in a list": ({"inference.base_url": ["http://a", "b:1"]}, "inference.base_url", '"b:1" is not a URL', "http://"),
    "URL twice": ({"inference.base_url": ["http://a", "http://a/"]}, "inference.base_url", "twice", "each server once"),
    "URL list empty": ({"inference.base_url": []}, "inference.base_url", "the list is empty", "give a value"),
    "cost without prices": ({"inference.max_cost": 5}, "inference", "needs to know what tokens cost", '"prices"'),
    "price below zero": ({"inference.prices": {"input": -1, "output": 1}}, "inference.prices.input", "range", "at least 0"),
    "truncation": ({"inference.truncation": "drop"}, "inference.truncation", "not one of", "reject"),
    "URL empty": ({"inference.base_url": ""}, "inference.base_url", "empty", "give a value"),
    "URL typo": (
        {"inference.base_uri": "http://x", "inference.base_url": "http://x"}, "inference.base_uri", "no key", "'base_url'"
    ),
    "key number": ({"inference.api_key": 123456789}, "inference.api_key", "text is needed here, not (hidden)", "text"),
    "key list": ({"inference.api_key": [SECRET]}, "inference.api_key", "text is needed here, not (hidden)", "text"),
    "key object": ({"inference.api_key": {"k": SECRET}}, "inference.api_key", "text is needed", "one text"),
    "key null": ({"inference.api_key": None}, "inference.api_key", "text is needed", "remove the key"),
    "key typo": ({"inference.apikey": SECRET}, "inference.apikey", "no key", "did you mean 'api_key'"),
    "key case": ({"inference.API_KEY": SECRET}, "inference.API_KEY", "no key", "did you mean 'api_key'"),
    "key at the top": ({"api_key": SECRET}, "api_key", "no key", "belongs in `inference`"),
    "key unset": ({"inference.api_key": "${env:NO_SUCH_KEY}"}, "inference.api_key", "not set", "export NO_SUCH_KEY"),
    "key as in a shell": ({"inference.api_key": "$OPENAI_API_KEY"}, "inference.api_key", "not filled in", "${env:OPENAI"),
    "stream": ({"inference.stream": "sometimes"}, "inference.stream", "true or false", "without quotes"),
    "timeout zero": ({"inference.timeout": 0}, "inference.timeout", "0 is out of range", "more than 0"),
    "retries below zero": ({"inference.max_retries": -1}, "inference.max_retries", "out of range", "at least 0"),
    "concurrency zero": ({"inference.max_concurrency": 0}, "inference.max_concurrency", "out of range", "at least 1"),
    "huge seed": ({"inference.seed": 2**63}, "inference.seed", "out of range", "less than 9223372036854775808"),
    "vLLM option": ({"inference.enforce_eager": True}, "inference.enforce_eager", "no key", "types, such as black_box_kd_local,"),
    "two names of model": ({"inference.model": "a", "inference.model_name": "b"}, "inference.model_name", "both", "keep"),
}  # fmt: skip
# Several keys together: the problem has no single place.
TOGETHER: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (LOCAL, {"models.teacher": DELETE, "dataset": {}}, "no labelled data", "models.teacher, or dataset.labeled_path"),
    (LOCAL, {"dataset": {}}, "no prompts", "dataset.instruction_path"),
    (API, {"dataset": {}}, "no prompts", "dataset.instruction_path"),
    (API, {"inference": DELETE, "dataset": {}}, "no labelled data", "inference.base_url, or dataset.labeled_path"),
    (API, {"inference": DELETE}, "no labelled data", "inference.base_url, or dataset.labeled_path"),
]


def named(cases: dict[str, Case], group: str, base: dict[str, Any] = LOCAL) -> list[Any]:
    return [pytest.param(base, *case, id=f"{group}: {name}") for name, case in cases.items()]


CASES = [
    *named(JOB_TYPES, "job type"),
    *named(SECTIONS, "section"),
    *named(UNKNOWN_KEYS, "unknown key"),
    *named(STUDENTS, "models"),
    *named(API_CASES, "api", API),
    *(
        pytest.param(LOCAL, {key: value}, key, problem, hint, id=f"value: {key}={str(value)[:24]}")
        for key, value, problem, hint in VALUES
    ),
]


@pytest.mark.parametrize(("base", "changes", "key", "problem", "hint"), CASES)
def test_one_mistake(
    base: dict[str, Any],
    changes: dict[str, Any],
    key: str,
    problem: str,
    hint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMPTY_VARIABLE", "")
    if isinstance(changes.get(key), float) and changes[key] == float("inf"):
        # JSON has no infinity, and the parser says so before the value is checked.
        path = write(tmp_path / "kd.json", changed(base, changes))
        found = complaints(path, capsys)
    else:
        path = write(tmp_path / "kd.json", changed(base, changes))
        found = complaints(path, capsys)
        chosen = [each for each in found if each.text.startswith(f"{key}: ")]
        assert len(chosen) == 1, found
        # A misspelt key gives two problems, itself and the missing key; every other mistake gives one.
        assert len(found) == 1 or "jobtype" in changes, found
        found = chosen
        assert found[0].where == f"{path}:{line_of(path, key)}"
    assert problem in found[0].text
    assert hint in found[0].hint
    assert "123456789" not in str(found)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 170


@pytest.mark.parametrize(("base", "changes", "problem", "hint"), TOGETHER)
def test_keys_that_do_not_go_together(
    base: dict[str, Any],
    changes: dict[str, Any],
    problem: str,
    hint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "kd.json", changed(base, changes))
    found = complaints(path, capsys)
    assert len(found) == 1
    assert found[0].where == f"{path}:1"
    assert problem in found[0].text
    assert hint in found[0].hint


def test_an_empty_student_lacks_two_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "kd.json", changed(LOCAL, {"models.student": {}}))
    found = complaints(path, capsys)
    assert [each.text.split(":")[0] for each in found] == ["models.student.from", "models.student.keep_layers"]
    assert {each.where for each in found} == {f"{path}:{line_of(path, 'models.student')}"}


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "job_type": "black_box_kd_locl",
        "dataset.instruction_path": 3,
        "dataset.sed": 4,
        "inference.temperature": "hot",
        "inference.base_url": "http://x",
        "inference.system_prompt": "${env:NO_SUCH_VARIABLE}",
        "models.teacher": "",
        "models.student": {"from": "x", "keep_layers": 1, "seed": 3},
        "training.learning_rate": -1,
        "training.bf16": "maybe",
        "training.max_length": 1,
        "training.max_seq_length": 1,
        "training.lora": {"r": 0, "rank": 3, "target_modules": [3]},
        "evaluation": [],
        "learning_rate": 1,
    }
    path = write(tmp_path / "kd.json", changed(LOCAL, changes))
    found = complaints(path, capsys)
    keys = [each.text.split(": ")[0] for each in found]
    assert sorted(keys) == sorted(
        [
            *(key for key in changes if key not in {"models.student", "training.lora", "training.max_length"}),
            *("models.student.keep_layers", "models.student.seed"),
            *("training.lora.r", "training.lora.rank", "training.lora.target_modules.0"),
        ]
    )
    lines = [int(each.where.rsplit(":", 1)[1]) for each in found]
    assert lines == sorted(lines)
    last = "training.lora.target_modules"
    assert lines[keys.index(f"{last}.0")] == line_of(path, last) + 1


@pytest.mark.parametrize("job_type", [DELETE, "make coffee", 5, ["label"]])
def test_without_a_known_job_type_the_rest_is_still_checked(
    job_type: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for base in (LOCAL, API):
        path = write(tmp_path / "kd.json", changed(base, {"job_type": job_type, "training.learnin_rate": 1}))
        keys = [each.text.split(": ")[0] for each in complaints(path, capsys)]
        assert sorted(keys) == ["job_type", "training.learnin_rate"]


NOTATIONS = {
    "kd.yaml": "job_type: black_box_kd_local\ndataset:\n  instruction_path: a\n  sed: 1\nmodels:\n  teacher: t\n"
    "  student:\n    from: s\n    keep_layers: 1\ntraining: {bf16: maybe}\n",
    "kd.toml": 'job_type = "black_box_kd_local"\n[dataset]\ninstruction_path = "a"\nsed = 1\n[models]\n'
    'teacher = "t"\n[models.student]\nfrom = "s"\nkeep_layers = 1\n[training]\nbf16 = "maybe" # so so\n',
    "kd.jsonc": '{"job_type": "black_box_kd_local", "dataset": {\n\n"instruction_path": "a", /* \n */ "sed": 1},\n'
    '"models": {"teacher": "t", "student": {"from": "s",\n\n\n"keep_layers": 1}}, // so so\n"training": {"bf16": "maybe"}}',
}  # fmt: skip


@pytest.mark.parametrize("name", NOTATIONS)
def test_lines_in_every_notation(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_text(NOTATIONS[name])
    found = complaints(path, capsys)
    text = path.read_text().splitlines()
    assert [each.text.split(": ")[0] for each in found] == [
        "dataset.sed",
        "models.student.keep_layers",
        "training.bf16",
    ]
    for each in found:
        line, key = int(each.where.rsplit(":", 1)[1]), each.text.split(": ")[0].rsplit(".", 1)[1]
        assert key in text[line - 1]


@pytest.mark.parametrize(
    ("name", "text", "problem", "hint"),
    [
        ("kd.yaml", "output_dir: .inf", "not a finite number", "such as 0.5"),
        ("kd.yaml", "output_dir: !!binary aGk=", "type bytes", "in quotes"),
        ("kd.yaml", "output_dir: !!set {a, b}", "type set", "in quotes"),
        ("kd.yaml", 'output_dir: "\\ud800"', "surrogate", "UTF-8"),
        ("kd.toml", "output_dir = 2026-01-01", "type date", "in quotes"),
        ("kd.toml", "output_dir = inf", "not a finite number", "such as 0.5"),
        ("kd.json", '{"output_dir": 1e999}', "not a finite number", "such as 0.5"),
        ("kd.json", '{"output_dir": "\\ud800"}', "surrogate", "UTF-8"),
    ],
)
def test_values_that_json_does_not_have(
    name: str, text: str, problem: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = [each for each in complaints(path, capsys) if each.text.startswith("output_dir: ")]
    assert len(found) == 1
    assert problem in found[0].text
    assert hint in found[0].hint


# --- secrets ------------------------------------------------------------------------------------------------


def secret_names(model: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, info in model.model_fields.items():
        names |= {name} if SecretStr in list(members_of(info.annotation)) else set()
        for inner in models_in(info.annotation):
            names |= secret_names(inner)
    return names


def test_the_list_of_secret_keys_is_complete() -> None:
    assert set().union(*map(secret_names, api.job_classes().values())) == SECRET_KEYS


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({"inference": [{"api_key": SECRET}]}, []),
        ({"inference": f'{{"api_key": "{SECRET}"}}'}, []),
        ({"dataset": {"api_key": [SECRET]}}, []),
        ({"training.seed": {"api_key": SECRET}}, []),
        ({"inference.temperature": "${env:OTHER_SECRET}"}, []),
        ({"inference.max_concurrency": ["${env:OTHER_SECRET}"]}, []),
        ({"inference.base_url": f"ftp://user:{SECRET}@host"}, []),
        ({"inference.max_retries": f"http://user:{SECRET}@host"}, []),
        ({"dataset.seed": "x"}, ["--set", f"inference.api_key={SECRET}"]),
        ({}, ["--set", f'inference.api_key=["{SECRET}"]']),
        ({}, ["--set", "inference.api_key.name=x"]),
        ({}, ["--set", f'inference={{"api_key": "{SECRET}"']),
    ],
)
def test_no_message_shows_a_secret(
    changes: dict[str, Any],
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTHER_SECRET", SECRET)
    path = write(tmp_path / "kd.json", changed(API, changes))
    assert complaints(path, capsys, *arguments)


# --- fuzzing --------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def accepted_or_explained(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", str(path)])
    err = capsys.readouterr().err
    assert code == 0 or (code == 2 and err.startswith("error: "))
    assert "Traceback" not in err
    assert SECRET not in err


@FUZZ
@given(data=st.data())
def test_any_value_anywhere(data: st.DataObject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = data.draw(st.sampled_from([LOCAL, API]))
    sections = ["dataset", "inference", "models", "training", "evaluation", "training.lora", "models.student", "x"]
    section = data.draw(st.sampled_from(sections))
    keys = ["", ".seed", ".student", ".learning_rate", ".lora", ".temperature", ".config", ".from", ".x", ".bf16"]
    key = data.draw(st.sampled_from(keys) | st.text(max_size=5).map(lambda text: f".{text.replace('.', '')}"))
    above: Any = changed(base, {}).get(section.split(".")[0])
    value = data.draw(json_values)
    config = changed(base, {"models.student": {}} if section == "models.student" and key else {})
    if isinstance(above, dict) or not key:
        config = changed(config, {section + key: value})
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    accepted_or_explained(path, capsys)


@FUZZ
@given(
    base=st.sampled_from([LOCAL, API]),
    slips=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 4), st.text(max_size=3)), min_size=1, max_size=3),
)
def test_any_typo(
    base: dict[str, Any], slips: list[tuple[int, int, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(base, indent=1).replace(SECRET, "k")
    for at, cut, new in slips:
        text = text[:at] + new + text[at + cut :]
    path = tmp_path / "kd.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    accepted_or_explained(path, capsys)


@FUZZ
@given(
    name=st.sampled_from(sorted(NOTATIONS)),
    at=st.integers(0, 250),
    cut=st.integers(0, 6),
    new=st.text(max_size=3) | st.text("{}[]:,'\"#&*!|>-=\n\t \\", max_size=4),
)
def test_any_typo_in_every_notation(
    name: str, at: int, cut: int, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = NOTATIONS[name]
    path = tmp_path / name
    path.write_text(text[:at] + new + text[at + cut :], encoding="utf-8", errors="surrogatepass")
    accepted_or_explained(path, capsys)


@FUZZ
@given(content=st.binary(max_size=60), name=st.sampled_from(sorted(NOTATIONS)))
def test_any_bytes(content: bytes, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    accepted_or_explained(path, capsys)


@FUZZ
@given(
    override=st.text(max_size=12)
    | st.tuples(st.sampled_from(["training.seed", "models", "x.y"]), st.text()).map("=".join)
)
def test_any_override(override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "kd.json", LOCAL)
    code = main(["validate", str(path), f"--set={override}"])
    assert code in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_job_of_a_pipeline_that_is_not_a_section() -> None:
    clean = {"job_type": "deduplicate", "dataset": {"instruction_path": "seeds.json"}}
    with pytest.raises(ConfigError, match=r"jobs\.sft: a job's config is needed here, not 1"):
        easydistill.validate({"job_type": "pipeline", "jobs": {"clean": clean, "sft": 1}})


@pytest.mark.parametrize(
    ("path", "word", "told", "hint"),
    [
        ("training.train_parts", "languag", '.0: "languag" is not one of "language"', 'did you mean "language"?'),
        ("training.train_parts", "x", '.0: "x" is not one of', 'use one of "language", "connector" or "vision"'),
        ("launch.offload", "x", '.0: "x" is not one of', 'use one of "optimizer" or "parameters"'),
    ],
)
def test_a_word_in_a_list(path: str, word: str, told: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        api.validate(changed(LOCAL, {path: [word]}))
    assert f"{path}{told}" in str(raised.value)
    assert hint in str(raised.value)


def test_a_section_without_keys_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "kd.json", changed(LOCAL, {"track": [{"tensorboard": {"x": 1}}]}))
    (found,) = complaints(path, capsys)
    assert found.text.startswith("track.0.tensorboard.x: there is no key 'x'")
    assert found.hint == "remove it; there are no keys here"
