#!/usr/bin/env bash
# safetensors 0.8.0: with two or more entries of metadata, equal tensors and equal metadata are not equal bytes: the entries
# stand in the header in the order of a hash map that is seeded anew for every file. Whoever compares files by their hash
# (caches, manifests, resumed against uninterrupted runs) sees other files. One entry, or none, is always written alike.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
from safetensors.numpy import save


def kinds(metadata: dict[str, str]) -> int:
    return len({save({"weight": np.zeros(1)}, metadata) for _ in range(64)})


one, two = kinds({"ids": "a"}), kinds({"ids": "a", "images": "b"})
print(f"64 savings of the same: {one} kind of bytes with one entry of metadata, {two} with two")
sys.exit(0 if one == 1 and two > 1 else "safetensors behaves otherwise than recorded here")
PYTHON
