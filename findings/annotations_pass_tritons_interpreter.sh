#!/usr/bin/env bash
# triton 3.9.0: a kernel whose arguments have ordinary annotations (`rows: Any`, under `from __future__ import
# annotations` too) runs in Triton's interpreter (TRITON_INTERPRET=1), and no GPU can run it: the compiler evaluates the
# annotations as code of the kernel and refuses every name that is not a constexpr. A test by the interpreter alone
# passes for a kernel that has never compiled. Compiling for a given GPU needs none: triton.compile(…, target=GPUTarget(…)).
# Source: triton/compiler/code_generator.py visits the arguments' annotations; triton/runtime/interpreter.py does not. A
# user would expect annotations to be ignored, as Python does, or refused by both.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps triton==3.9.0
cd "$folder"
cat >kernel.py <<'PYTHON'
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def annotated(rows: Any, SIZE: tl.constexpr) -> None:
    at = tl.arange(0, SIZE)
    tl.store(rows + at, tl.load(rows + at) + 1)


@triton.jit
def plain(rows, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(rows + at, tl.load(rows + at) + 1)
PYTHON
TRITON_INTERPRET=1 venv/bin/python -W ignore - <<'PYTHON'
import torch
from kernel import annotated

rows = torch.zeros(4)
annotated[(1,)](rows, SIZE=4)
print("interpreter, with annotations:", rows.tolist())
assert rows.tolist() == [1.0] * 4
PYTHON
TRITON_CACHE_DIR="$folder/cache" venv/bin/python -W ignore - <<'PYTHON'
import sys

import triton
from kernel import annotated, plain
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def compiled(kernel):
    source = ASTSource(kernel, {"rows": "*fp32", "SIZE": "constexpr"}, constexprs={"SIZE": 4})
    try:
        return f"{len(triton.compile(source, target=GPUTarget('cuda', 90, 32)).asm['cubin'])} bytes of code"
    except triton.CompilationError as error:
        return str(error).splitlines()[-1][:80]


with_annotations, without = compiled(annotated), compiled(plain)
print("compiler, with annotations   :", with_annotations)
print("compiler, without            :", without)
same = "Any" in with_annotations and "bytes" in without
sys.exit(0 if same else "Triton behaves otherwise than recorded here")
PYTHON
