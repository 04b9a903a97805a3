"""Whether autocast keeps its copies of weights, before, in and after a training under a strategy, alone:
`python -m tests.support.autocast_seen STRATEGY STUDENT`. Prints {"before": bool, "inside": [bool, …], "after": bool}.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(strategy: str, path: str) -> None:
    import torch

    from easydistill.config.launch import LaunchConfig
    from easydistill.config.models import ModelsConfig
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.methods.sft import trainer as supervised
    from easydistill.methods.sft.batching import TokenRow
    from easydistill.methods.sft.config import TrainingConfig
    from easydistill.methods.shared.strategies import base
    from easydistill.models.student import build_student

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    base.use(LaunchConfig.model_validate({"strategy": strategy}))
    seen: list[bool] = []
    made = supervised.cross_entropy_loss

    def watched(chunk_bytes: int | None) -> Any:
        loss = made(chunk_bytes)

        def inner(*given: Any) -> Any:
            assert torch.is_autocast_enabled("cpu")
            seen.append(torch.is_autocast_cache_enabled())
            return loss(*given)

        return inner

    supervised.cross_entropy_loss = watched  # type: ignore[assignment]
    before = torch.is_autocast_cache_enabled()
    student = build_student(ModelsConfig(student=path), torch.float32)
    config = TrainingConfig(max_steps=1, bf16=True, gradient_checkpointing=True, optim="sgd")
    rows = [TokenRow(str(number), [5, 6, 7, 8, 9], [False, False, True, True, True]) for number in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        supervised.train(student, rows, config, Path(folder), Reporter(None, quiet=True), StopSignal())
    print(json.dumps({"before": before, "inside": seen, "after": torch.is_autocast_cache_enabled()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
