"""vLLM's server for models that see, whose classes need torchvision, beside a CPU build of torch.

PyPI's build of torchvision is for CUDA: its extension does not load here, and the operators of it that torchvision
describes on import are missing. They are declared first; none is called for images. The engine's process imports this
module too, as its main one.

    PYTHONPATH=<folder of torchvision> python -m tests.support.vllm_vision_server --model … (vLLM's options)
"""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import torch

_DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def declare_missing() -> None:
    """Declare the operators of torchvision that its extension would have defined."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(Path(found.origin).with_name("_C.so"))
    except OSError:
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


declare_missing()

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
