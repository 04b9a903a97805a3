#!/usr/bin/env bash
# transformers 5.19.0: the config field `logits_scaling` divides the logits of Granite, and multiplies those of HyperCLOVA X, whose code
# is else Granite's. Whoever applies output layers outside of the model (fused losses, scorers, exporters) and knows the
# field from Granite trains HyperCLOVA X at the square of its temperature, with a plausible loss. Source: the last lines of forward
# in models/granite/modeling_granite.py and models/hyperclovax/modeling_hyperclovax.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def logits(kind, scaling):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, logits_scaling=scaling)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        return model(torch.arange(6)[None]).logits


found = {kind: float((logits(kind, 4.0) / logits(kind, 1.0)).median()) for kind in ("granite", "hyperclovax")}
print(f"logits with logits_scaling 4, as multiples of those with 1: {found}")
right = abs(found["granite"] - 0.25) < 1e-3 and abs(found["hyperclovax"] - 4) < 1e-2
sys.exit(0 if right else "transformers behaves otherwise than recorded here")
PYTHON
