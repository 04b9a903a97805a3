"""Trains a tiny student from a signal store in this process or in several: `python -m tests.support.train_ranks`.

    train_ranks STUDENT ROWS STORE TARGET ACCUMULATION

ROWS is JSON Lines of {"id", "ids", "mask"}; the main process writes the trained weights to TARGET.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(student: str, rows: str, store: str, target: str, accumulation: str) -> None:
    import torch

    from easydistill.config.models import ModelsConfig
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.losses.forward_kld import Config
    from easydistill.methods.distil.row_loss import Distillation
    from easydistill.methods.sft.batching import TokenRow
    from easydistill.methods.sft.config import TrainingConfig
    from easydistill.methods.sft.trainer import train
    from easydistill.models.student import build_student
    from easydistill.signals.store import SignalStore

    made = [TokenRow(**json.loads(line)) for line in Path(rows).read_text().splitlines()]
    config = TrainingConfig(
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=int(accumulation),
        learning_rate=1e-2,
        optim="sgd",
        bf16=False,
        group_by_length=False,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        logging_steps=1,
    )
    found = build_student(ModelsConfig(student=student), torch.float32)
    distillation = Distillation(SignalStore(Path(store)), Config(kd_ratio=0.6), 1 << 22)
    train(found, made, config, Path(f"{target}.checkpoints"), Reporter(None, quiet=True), StopSignal(), distillation)
    if os.environ.get("RANK", "0") == "0":
        torch.save(found.model.state_dict(), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
