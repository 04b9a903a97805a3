#!/usr/bin/env bash
# transformers 5.19.0: given the pixels of an image but not `mm_token_type_ids`, which the processor makes and a collator of one's own
# easily leaves out, Qwen2.5-VL computes on with the positions of text and gives other logits, without a word; Qwen3-VL, of the same
# family and interface, refuses. Source: compute_3d_position_ids falls back to positions of text where the types are missing,
# transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

IMAGE, START, END, TOKENS = 90, 91, 92, 16
text = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
}  # fmt: skip
ids = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
tower = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "patch_size": 4}
tower["spatial_merge_size"] = 2
torch.manual_seed(0)
older = Qwen2_5_VLForConditionalGeneration(
    Qwen2_5_VLConfig(text_config=text, vision_config={**tower, "fullatt_block_indexes": [0], "window_size": 16}, **ids)
).eval()
newer = Qwen3VLForConditionalGeneration(
    Qwen3VLConfig(text_config=text, vision_config={**tower, "deepstack_visual_indexes": [0]}, **ids)
).eval()
row = torch.tensor([[1, START, *[IMAGE] * TOKENS, END, 5, 6, 7]])
image = {"pixel_values": torch.randn(64, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 8, 8]])}


def logits(model, **more):
    with torch.no_grad():
        return model(input_ids=row, **image, **more).logits


types = (row == IMAGE).long()
with_types, without = logits(older, mm_token_type_ids=types), logits(older)
share = float((with_types - without).norm() / with_types.norm())
try:
    logits(newer)
    refused = False
except ValueError as error:
    refused = True
    print(f"Qwen3-VL refuses: {str(error)[:120]}")
print(f"Qwen2.5-VL computes on: its logits differ by {share:.4f} of their norm")
sys.exit(0 if share > 1e-3 and refused else "transformers behaves otherwise than recorded here")
PYTHON
