#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0: an optimiser state of 8 bits that stands for bfloat16 (OptimState8bit) says it stands for
# float32 after .view() and after .detach(): the wrapper is made again without its number type. One bfloat16 parameter on one
# device never meets it; whoever shards states (FSDP2 calls view and detach on them) does, and the compiled step of AdamW8bit
# fails on the mixture of types. Source: torchao/optim/subclass_8bit.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>/dev/null <<'PYTHON'
import sys

import torch
from torchao.optim.subclass_8bit import OptimState8bit

state = OptimState8bit.zeros((64, 64), True, 256, "cpu", dtype=torch.bfloat16)
found = {"itself": state.dtype, "view": state.view(64, 64).dtype, "detach": state.detach().dtype}
print({name: str(kind) for name, kind in found.items()})
expected = {"itself": torch.bfloat16, "view": torch.float32, "detach": torch.float32}
sys.exit(0 if found == expected else "torchao behaves otherwise than recorded here")
PYTHON
