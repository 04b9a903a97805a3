#!/usr/bin/env bash
# transformers 5.19.0: a model whose config says tie_word_embeddings=False while its head and its embeddings still share
# their storage (the config was edited after loading) is saved without lm_head.weight. Loaded again, the head is random: a
# warning, no error, and other logits. Source: modeling_utils.py, save_pretrained (removal of shared tensors).
# A user would expect both tensors in the file, because the config says that they are separate, or an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     tie_word_embeddings=True)
model = LlamaForCausalLM(config).eval()
model.config.tie_word_embeddings = False
model.save_pretrained("saved")
with safe_open("saved/model.safetensors", "pt") as file:
    stored = "lm_head.weight" in file.keys()
again = AutoModelForCausalLM.from_pretrained("saved").eval()
ids = torch.arange(8)[None]
with torch.inference_mode():
    difference = float((model(ids).logits - again(ids).logits).abs().max())
print(f"lm_head.weight in the file: {stored}; logits after loading differ by {difference:.2g}")
sys.exit(0 if not stored and difference > 1e-3 else "transformers behaves otherwise than recorded here")
PYTHON
