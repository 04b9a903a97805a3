#!/usr/bin/env bash
# transformers 5.19.0: rows that are packed into one sequence, with position_ids that restart at every row and without an
# attention mask, are kept apart for Llama and Qwen3 (masking_utils.find_packed_sequence_indices), but not for
#   - gpt-oss, an attention-only model, whose forward does not pass position_ids to create_causal_mask;
#   - LFM2 and Mamba-2, whose convolutions and states run across rows (no seq_idx in the PyTorch path).
# Nothing is said: the loss is computed, with other values. Source: models/gpt_oss/modeling_gpt_oss.py (mask_kwargs),
# models/lfm2/modeling_lfm2.py, models/mamba2/modeling_mamba2.py. A user would expect isolation, or an error.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, logging

logging.set_verbosity_error()
COMMON = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
MODELS = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 8, "num_heads": 8, "n_groups": 1, "state_size": 8},
}
draw = torch.Generator().manual_seed(0)
first, other, second = (torch.randint(1, 64, (24,), generator=draw) for _ in range(3))
positions = torch.arange(24).repeat(2)[None]
leaks = {}
for name, extra in MODELS.items():
    config = AutoConfig.for_model(name, **COMMON, **extra)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        logits = [
            model(input_ids=torch.cat([row, second])[None], position_ids=positions, use_cache=False).logits[0, 24:]
            for row in (first, other)
        ]
    moved = float((logits[0] - logits[1]).abs().max())
    leaks[name] = moved > 1e-6
    print(f"{name}: another first row moves the logits of the second one by {moved:.2g}")
expected = {"llama": False, "qwen3": False, "gpt_oss": True, "lfm2": True, "mamba2": True}
sys.exit(0 if leaks == expected else "transformers behaves otherwise than recorded here")
PYTHON
