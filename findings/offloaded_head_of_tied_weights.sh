#!/usr/bin/env bash
# transformers 5.19.0 with accelerate 1.15.0: a device_map that keeps the output layer on the disk and the rest in memory is accepted
# for a model whose output layer and embedding are one tensor; it loads without an error, and the first pass ends with a bare
# KeyError: 'lm_head.weight'. Only what is saved is offloaded, and a tied head is not saved under its own name. With everything
# on the disk the same model gives the numbers of the whole one. Source: the hook of the head looks its weight up in the index of
# offloaded weights, accelerate/utils/offload.py; transformers/integrations/accelerate.py fills that index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
whole = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, tie_word_embeddings=True))
whole.save_pretrained("model")
ids = torch.arange(5)[None]


def found(places):
    model = AutoModelForCausalLM.from_pretrained("model", device_map=places, offload_folder="offloaded")
    try:
        with torch.no_grad():
            return torch.equal(model(ids).logits, whole(ids).logits)
    except KeyError as error:
        return error.args[0]


everything, head = found({"": "disk"}), found({"model": "cpu", "lm_head": "disk"})
print(f"everything on the disk: the same numbers: {everything}; the head alone: KeyError {head!r}")
sys.exit(0 if everything is True and head == "lm_head.weight" else "the libraries behave otherwise than recorded here")
PYTHON
