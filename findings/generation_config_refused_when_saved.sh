#!/usr/bin/env bash
# transformers 5.19.0: a model whose generation_config.json has "temperature": 0.6 and no "do_sample" is loaded (with a
# warning), trains and generates, and then cannot be saved: save_pretrained raises ValueError, in every checkpoint and
# after all steps. Source: generation/configuration_utils.py, GenerationConfig.save_pretrained, which validates strictly,
# while from_pretrained does not. A user would expect the refusal when the file is read.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("model")
Path("model/generation_config.json").write_text(json.dumps({"temperature": 0.6}))
model = AutoModelForCausalLM.from_pretrained("model")
print("loaded: temperature", model.generation_config.temperature)
try:
    model.save_pretrained("saved")
except ValueError as error:
    print("not saved:", str(error).splitlines()[1])
    print("weights on disk:", Path("saved/model.safetensors").exists())
    sys.exit(0 if not Path("saved/model.safetensors").exists() else "the weights are saved now")
sys.exit("transformers saves it now")
PYTHON
