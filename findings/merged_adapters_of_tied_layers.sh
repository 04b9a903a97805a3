#!/usr/bin/env bash
# peft 0.21.2: LoRA on both embed_tokens and lm_head of a model that ties them. Merging adds the deltas of both adapters to
# the one shared matrix, so the merged model computes something else than the adapted one did. Source:
# peft/tuners/lora/layer.py (merge adds in place to base_layer.weight). Said only as a warning when the adapters are made.
# A user would expect merge_and_unload to keep the outputs, or to refuse.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, logging

logging.set_verbosity_error()


def moved(tied, targets):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=tied)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules=targets)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.1)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        after = model.merge_and_unload()(input_ids=ids).logits
    return float((before - after).abs().max())


both = ["embed_tokens", "lm_head"]
found = {"tied": moved(True, both), "untied": moved(False, both), "tied, other layers": moved(True, ["q_proj"])}
for name, value in found.items():
    print(f"{name}: merging moves the logits by {value:.2g}")
expected = found["tied"] > 0.01 > max(found["untied"], found["tied, other layers"]) * 10
sys.exit(0 if expected else "peft behaves otherwise than recorded here")
PYTHON
