"""Which passes of a student's layers a CUDA graph can hold: each tried in a process of its own, which it may spoil.

A compiled step in the shape of Qwen2.5-0.5B keeps an H100 busy for 51 ms and more, Python for 80. Forward and backward
pass of the layers as two CUDA graphs would be launched as two. On 2026-11-28 recording them, compiled and under
autocast, failed there ("operation failed due to a previous error during capture"), and what came first is not known.
This takes the recording apart: the body alone or compiled, forward alone or both passes, with and without autocast, by
the mode of errors. What can be recorded is replayed and compared.

    python -m benchmarks.gpu.run --parts capture
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import torch
from benchmarks.common import RESULT
from benchmarks.gpu.training_sides import HALF_B

WARM_UPS = 2
KINDS = ("plain", "compiled")
PASSES = ("forward", "both")
MODES = ("thread_local", "global", "relaxed")


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """Kind, passes, autocast, mode → the seconds of a replay and its error, or what failed."""
    if not torch.cuda.is_available():
        return {"skipped": "here is no GPU"}
    ends = time.monotonic() + budget_seconds
    found: dict[str, Any] = {}
    for mode, kind, passes, autocast in itertools.product(MODES, KINDS, PASSES, ("autocast", "bfloat16")):
        name = f"{kind}, {passes}, {autocast}, {mode}"
        if time.monotonic() > ends:
            found[name] = "no time was left"
            continue
        command = [sys.executable, "-m", "benchmarks.gpu.capture", kind, passes, autocast, mode]
        done = subprocess.run(command, capture_output=True, text=True)
        line = next((text for text in done.stdout.splitlines() if text.startswith(RESULT)), None)
        found[name] = json.loads(line.removeprefix(RESULT)) if line else {"failed": done.stderr[-1500:]}
    return found


def tried(kind: str, passes: str, autocast: str, mode: str, rows: int = 8, tokens: int = 1024) -> dict[str, Any]:
    """One recording: its seconds, and its largest relative difference from the pass itself."""
    from transformers import masking_utils

    body = HALF_B.build(torch.float32 if autocast == "autocast" else torch.bfloat16).model.train()
    if kind == "compiled":
        for layer in body.layers:
            layer.compile(dynamic=False)
    parameters = [weight for name, weight in body.named_parameters() if "embed" not in name]
    embeds = torch.randn(rows, tokens, HALF_B.hidden, device="cuda", dtype=parameters[0].dtype).requires_grad_()
    outer = torch.randn_like(embeds)
    out, gradients = torch.zeros_like(embeds), [torch.zeros_like(weight) for weight in parameters]
    live: list[torch.Tensor] = []

    def forward() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast == "autocast", cache_enabled=False):
            live[:] = [body(inputs_embeds=embeds, use_cache=False).last_hidden_state]
        out.copy_(live[0].detach())

    def backward() -> None:
        grads = torch.autograd.grad(live[0], parameters, outer.to(live[0].dtype))
        torch._foreach_copy_(gradients, list(grads))
        live.clear()

    runs = [forward, backward] if passes == "both" else [forward]
    # It looks at positions, which the host would wait for.
    with mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                for run in runs:
                    run()
        torch.cuda.current_stream().wait_stream(side)
        wanted = [out.clone(), *(one.clone() for one in gradients)]
        pool, graphs = torch.cuda.graph_pool_handle(), []
        for run in runs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
                run()
            graphs.append(graph)
    for one in (out, *gradients):
        one.zero_()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    pairs = zip([out, *gradients], wanted, strict=True)
    error = max(float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-20)) for a, b in pairs)
    return {"ms": round(1000 * seconds, 2), "error": error}


if __name__ == "__main__":
    print(RESULT + json.dumps(tried(*sys.argv[1:5])))
