"""The sides of `benchmarks/gpu/training.py`: seconds of the steps of our `train` and of TRL's on the same work."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.losses.forward_kld import Config as ForwardKL
from easydistill.methods.distil.row_loss import PREFIX, Distillation
from easydistill.methods.sft import trainer as supervised
from easydistill.methods.sft.batching import TokenRow
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.watch import Watch
from easydistill.models.student import Student

SEED, LISTED = 0, 64


@dataclass(frozen=True)
class Shape:
    """A student's shape."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    keys: int
    vocabulary: int = 151_936

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        from transformers import AutoModelForCausalLM, Qwen2Config

        config = Qwen2Config(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.keys,
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
        )
        torch.manual_seed(SEED)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)


HALF_B, ONE_AND_A_HALF_B = Shape(896, 4864, 24, 14, 2), Shape(1536, 8960, 28, 12, 2)
TINY = Shape(64, 128, 2, 4, 2, 512)
Rows = list[tuple[list[int], list[bool]]]


def made_rows(lengths: Sequence[int], vocabulary: int) -> Rows:
    """(ids, mask); the last 60 % of a row are learned."""
    draw = random.Random(SEED)
    return [
        ([draw.randrange(vocabulary) for _ in range(size)], [at >= 0.4 * size for at in range(size)])
        for size in lengths
    ]


def log_normal(count: int, low: int, high: int) -> list[int]:
    draw = random.Random(SEED)
    return [max(low, min(high, int(draw.lognormvariate(6.2, 1.0) * high / 4096))) for _ in range(count)]


class Clock:
    """Seconds of each step, with the device's work done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._at = 0.0

    def begin(self) -> None:
        self._settle()
        self._at = time.perf_counter()

    def end(self) -> None:
        self._settle()
        self.seconds.append(time.perf_counter() - self._at)

    def _settle(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class RandomSignals(Distillation):
    """Signals as a store would give them, of random tokens."""

    def __init__(self, vocabulary: int) -> None:
        store: Any = mock.Mock()
        store.manifest.codec.vocabulary = vocabulary
        super().__init__(store, ForwardKL(), None)
        self._vocabulary = vocabulary

    def collate(self, rows: Sequence[TokenRow]) -> dict[str, torch.Tensor]:
        count = sum(int(row.learned.sum()) for row in rows)
        # Distinct tokens in every row: a random start, and equal steps from it.
        start_N1 = torch.randint(0, self._vocabulary, (count, 1))
        ids_NM = (start_N1 + torch.arange(LISTED) * (self._vocabulary // LISTED)) % self._vocabulary
        weights_NM = torch.rand(count, LISTED).softmax(-1) * 0.9
        arrays = {
            "ids_NM": ids_NM,
            "logweights_NM": weights_NM.log(),
            "log_rest_N": torch.full((count,), 0.1).log(),
            "offset_N": torch.zeros(count),
            "present_N": torch.ones(count, dtype=torch.bool),
            "labelled_N": torch.ones(count, dtype=torch.bool),
        }
        return {f"{PREFIX}{name}": value for name, value in arrays.items()}


NOTES: list[str] = []
"""What our trainings said."""


class NotingReporter(Reporter):
    """Keeps what a user would read."""

    def say(self, text: str, *args: Any, **kwargs: Any) -> None:
        NOTES.append(text.strip())


def ours(shape: Shape, rows: Rows, *, distil: bool = False, **values: Any) -> list[float]:
    """Seconds of the steps of our `train`."""
    clock = Clock()

    class TimedWatch(Watch):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            clock.end()
            return super().on_step_end(args, state, control, **kwargs)

    base: dict[str, Any] = {"num_train_epochs": 1, "gradient_accumulation_steps": 1, "bf16": True, "compile": False}
    base |= {"logging_steps": 1000, "save_steps": 100_000, "group_by_length": False}
    config = TrainingConfig(**(base | values))
    student = Student(shape.build(), tokenizer(shape.vocabulary), frozenset({0}), "bfloat16", "random weights")
    made = [TokenRow(str(at), ids, mask) for at, (ids, mask) in enumerate(rows)]
    signals = RandomSignals(shape.vocabulary) if distil else None
    with tempfile.TemporaryDirectory() as directory, mock.patch.object(supervised, "Watch", TimedWatch):
        supervised.train(
            student, made, config, Path(directory), NotingReporter(None, quiet=True), StopSignal(), signals
        )
    return clock.seconds


def tokenizer(vocabulary: int) -> Any:
    """One whose tokens are numbers, for trainers that ask for one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="1", unk_token="0")


def trl_arguments(directory: str, batch: int, length: int) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "num_train_epochs": 1,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-5,
        "weight_decay": 0.05,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "bf16": True,
        "gradient_checkpointing": False,
        "max_length": length,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def timer(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end()

    return Timer()


def trl_sft(shape: Shape, rows: Rows, batch: int, *, liger: bool = False, packing: bool = False) -> list[float]:
    """Seconds of the steps of TRL's SFTTrainer."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = Clock()
    columns = {"input_ids": [ids for ids, _ in rows], "completion_mask": [[int(on) for on in mask] for _, mask in rows]}
    length = max(len(ids) for ids, _ in rows)
    with tempfile.TemporaryDirectory() as directory:
        config = SFTConfig(
            **trl_arguments(directory, batch, length),
            completion_only_loss=True,
            packing=packing,
            use_liger_kernel=liger,
        )
        SFTTrainer(
            model=shape.build().train(),
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer(shape.vocabulary),
            callbacks=[timer(clock)],
        ).train()
    return clock.seconds


def trl_gkd(shape: Shape, teacher: Shape, rows: Rows, batch: int) -> list[float]:
    """Seconds of the steps of TRL's GKDTrainer on the given tokens, with the teacher in memory."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    clock = Clock()

    def batch_of(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([item["ids"] for item in items])
        mask = torch.tensor([item["mask"] for item in items])
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(~mask, -100)}
        return {**found, "prompts": ids[:, :1], "prompt_attention_mask": torch.ones_like(ids[:, :1])}

    with tempfile.TemporaryDirectory() as directory:
        config = GKDConfig(
            **trl_arguments(directory, batch, len(rows[0][0])),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            remove_unused_columns=False,
        )
        GKDTrainer(
            model=shape.build().train(),
            teacher_model=teacher.build(torch.bfloat16),
            args=config,
            data_collator=batch_of,
            train_dataset=Dataset.from_dict({"ids": [ids for ids, _ in rows], "mask": [mask for _, mask in rows]}),
            processing_class=tokenizer(shape.vocabulary),
            callbacks=[timer(clock)],
        ).train()
    return clock.seconds
