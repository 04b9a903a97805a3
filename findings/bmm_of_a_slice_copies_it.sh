#!/usr/bin/env bash
# torch 2.13.0, CPU: `torch.bmm` in bfloat16 first copies an operand that is a slice of a longer buffer, such as the filled part of
# a cache of keys and values that is written in place; in float32 the same product copies nothing. Decoding then moves the whole
# cache at every token. The product with the whole buffer, its unused part masked, copies nothing. Source: the
# path through mkldnn asks for contiguous operands, aten/src/ATen/native/LinearAlgebra.cpp and mkldnn/Matmul.cpp.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.profiler import ProfilerActivity, profile


def copies(left, right):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.bmm(left, right)
    return sum(event.count for event in seen.key_averages() if event.key == "aten::copy_")


found = {}
for dtype in (torch.float32, torch.bfloat16):
    probabilities, values = torch.randn(8, 1, 512).to(dtype), torch.randn(8, 512, 64).to(dtype)
    found[dtype] = copies(probabilities[:, :, :256].contiguous(), values[:, :256]), copies(probabilities, values)
    print(f"{dtype}: copies of a product with half of the buffer, with all of it: {found[dtype]}")
expected = {torch.float32: (0, 0), torch.bfloat16: (1, 0)}
sys.exit(0 if found == expected else "torch behaves otherwise than recorded here")
PYTHON
