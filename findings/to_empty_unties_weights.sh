#!/usr/bin/env bash
# torch 2.13.0: `Module.to_empty`, the documented way to bring a module from the meta device to memory, gives weights that two modules
# share a tensor each, so the module has more parameters than before, nothing is said, and the two are trained apart; `Module.to`
# keeps them shared. In several processes of which only some were made on the meta device, the numbers of parameters then
# differ, and whatever goes through them in step waits for ever. Source: Module._apply replaces parameters one by one where the
# type of their tensor changes, torch/nn/modules/module.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


def parameters(module):
    return len(list(module.parameters()))


with torch.device("meta"):
    made = Tied()
before = parameters(made)
emptied = parameters(made.to_empty(device="cpu"))
moved = parameters(Tied().to(torch.float64))
print(f"parameters on the meta device: {before}; after to_empty: {emptied}; after `to`: {moved}")
sys.exit(0 if (before, emptied, moved) == (1, 2, 1) else "torch behaves otherwise than recorded here")
PYTHON
