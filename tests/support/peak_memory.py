"""The peak memory of a training in this process, beside what is estimated: `python -m tests.support.peak_memory`.

    peak_memory SHAPE TRAINING [LAUNCH]

All are JSON: a transformers config, and the sections `training` and `launch`. With the latter this process is one of
several, as its environment says. Prints {"peak": bytes, "estimate": bytes}.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(shape: dict[str, Any], training: dict[str, Any], launch: dict[str, Any] | None = None) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from easydistill.config.launch import LaunchConfig
    from easydistill.config.models import FreshStudent, ModelsConfig
    from easydistill.methods.sft.batching import TokenRow
    from easydistill.methods.sft.config import TrainingConfig
    from easydistill.methods.sft.feeding import Feed
    from easydistill.methods.shared.adapters import with_adapters
    from easydistill.methods.shared.compat import FusedTrainer, cross_entropy_loss, fuse_loss, training_arguments
    from easydistill.methods.shared.sharded_memory import process_memory
    from easydistill.methods.shared.strategies import base as strategies
    from easydistill.models.size import student_shape

    config = TrainingConfig(**training)
    found = student_shape(ModelsConfig(student=FreshStudent(config=shape)))
    assert found is not None
    how, ranks = LaunchConfig(**(launch or {})), int(os.environ.get("WORLD_SIZE", 1))
    if launch is not None:
        torch.distributed.init_process_group("gloo")
        strategies.use(how)
    needed = process_memory(found, config, how, ranks, bf16=bool(config.bf16))
    # The CPU's memory holds all of it here.
    estimate = needed.device.total + needed.host
    generator = random.Random(0)
    rows = [
        [TokenRow(str(n), [generator.randrange(100) for _ in range(config.max_length)], [True] * config.max_length)]
        for n in range(4 * config.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", 1)))
    ]
    # Libraries load what they need with a first product and a first step, before the memory is looked at.
    torch.nn.functional.linear(torch.randn(8, 8, requires_grad=True), torch.randn(8, 8)).sum().backward()
    before = _used()
    values = dict(shape)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values), dtype=getattr(torch, config.weights)
    )
    parameters = sum(value.numel() for value in model.parameters())
    assert abs(parameters - found.parameters) < 1e-3 * parameters
    fuse_loss(model, cross_entropy_loss(config.loss_chunk_bytes))
    feed = Feed(rows, config, 0, None, ranks)
    with tempfile.TemporaryDirectory() as directory:
        arguments = training_arguments(config, Path(directory), torch.device("cpu"))
        if feed.whole_batches:
            arguments.per_device_train_batch_size = 1
        trainer = FusedTrainer(
            model=with_adapters(model, config),
            args=arguments,
            train_dataset=feed.dataset,
            data_collator=feed.collate,
            sampler=feed.sampler,
        )
        strategies.strategy().prepared(trainer)
        trainer.train()
    print(
        json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, "estimate": estimate})
    )


def _used() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main(*(json.loads(argument) for argument in sys.argv[1:]))
