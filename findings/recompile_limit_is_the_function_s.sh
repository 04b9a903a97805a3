#!/usr/bin/env bash
# torch 2.13.0: the limit of versions that torch.compile makes (recompile_limit, 8) is counted for the code of `forward`, over
# the whole process, not for the module that is compiled. When one model's shapes have used it up, `compile` on layers of a
# new model of the same class does nothing: every call runs eagerly, and the one warning was that of the first model. A program
# that trains twice is slow the second time. `torch.compiler.reset()` between the two helps. Source: the cache entries and
# their count belong to the code object, torch/_dynamo/convert_frame.py.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

compiled = []


def counted(graph, inputs):
    compiled.append(graph)
    return graph


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.product = torch.nn.Linear(4, 4)

    def forward(self, rows):
        return self.product(rows).relu()


def versions(lengths):
    """How often a new layer is compiled for inputs of so many rows."""
    before = len(compiled)
    layer = Layer()
    layer.compile(backend=counted, dynamic=False)
    for length in lengths:
        layer(torch.randn(length, 4))
    return len(compiled) - before


first = versions(range(2, 22))
second = versions([2, 3])
torch.compiler.reset()
third = versions([2, 3])
print(f"compiled for 20 shapes: {first}; a new layer afterwards: {second}; after a reset: {third}")
sys.exit(0 if first == 8 and second == 0 and third == 2 else "torch behaves otherwise than recorded here")
PYTHON
