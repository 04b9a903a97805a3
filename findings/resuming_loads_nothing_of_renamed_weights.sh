#!/usr/bin/env bash
# transformers 5.19.0: a Trainer that resumes a LLaVA loads none of the weights of its checkpoint. `save_pretrained` writes
# them under the names of the architecture's first release (language_model.model.layers…), and `_load_from_checkpoint`
# hands them to `load_state_dict(…, False)` under these names: everything is missing, everything is unexpected, and there
# is a warning. The optimiser, the schedule and the order of rows are resumed, on the weights that the training began with.
# Qwen2.5-VL, Gemma3 and other architectures with such names are alike. Source: trainer.py, _load_from_checkpoint.
# A user would expect the names to be converted, as `from_pretrained` does, or an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments, logging

logging.set_verbosity_error()
small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
config = LlavaConfig(
    text_config={"model_type": "llama", **small, "vocab_size": 32},
    vision_config={"model_type": "clip_vision_model", **small, "image_size": 8, "patch_size": 4},
    image_token_id=31,
)
torch.manual_seed(0)
trained, started = (LlavaForConditionalGeneration(config) for _ in range(2))
trained.save_pretrained("checkpoint")
before = {name: value.clone() for name, value in started.state_dict().items()}
Trainer(started, TrainingArguments("out", report_to=[], use_cpu=True))._load_from_checkpoint("checkpoint")
loaded = sum(bool((value != before[name]).any()) for name, value in started.state_dict().items())
again = LlavaForConditionalGeneration.from_pretrained("checkpoint").state_dict()
whole = all(torch.equal(value, again[name]) for name, value in trained.state_dict().items())
print(f"{loaded} of {len(before)} tensors were loaded on resuming; from_pretrained loads all: {whole}")
sys.exit(0 if loaded == 0 and whole else "transformers behaves otherwise than recorded here")
PYTHON
