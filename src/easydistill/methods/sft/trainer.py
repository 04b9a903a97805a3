"""Training on rows of tokens: supervised fine-tuning, and distillation from stored signals.

    loss = (1/N) Σ_n loss_n,   N = answer tokens of the optimiser step

where loss_n is −log p_student(answer token n | the tokens before it), or that combined with the teacher's signal
(`methods/distil/row_loss.py`). In: token rows and a student. Out: the student, trained in place. Weights and
optimiser are in float32; the computation is in bfloat16 on devices that are fast at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError
from easydistill.methods.distil.row_loss import Distillation
from easydistill.methods.sft.batching import RowDataset, TokenRow, collate, epoch_sampler, pack, unlearned
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.items import Items
from easydistill.methods.sft.packing import check_packing
from easydistill.methods.sft.rank_batches import RankBatchSampler
from easydistill.methods.sft.token_batches import Batch, BatchDataset, token_batch_sampler
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import (
    FusedTrainer,
    check_head,
    cross_entropy_loss,
    fuse_loss,
    training_arguments,
    unfuse_loss,
)
from easydistill.methods.shared.ranks import check_ranks, world_size
from easydistill.methods.shared.watch import TrainingOutcome, Watch, run_trainer, training_outcome
from easydistill.models.loading import device, with_padding
from easydistill.models.student import Student


def batches(
    items: Sequence[list[TokenRow]],
    config: TrainingConfig,
    batch_of: Callable[[Sequence[list[TokenRow]]], dict[str, Any]],
    ranks: int = 1,
) -> dict[str, Any]:
    """Dataset, sampler and collator for a `FusedTrainer`, as arguments by their names.

    Args:
        items: rows, or the rows of packs.
        batch_of: makes a micro-batch of items.
        ranks: processes that train together.
    """
    grouped = config.group_by_length and not config.packing
    lengths = [sum(len(row) for row in item) for item in items]
    if config.max_tokens_per_batch is None and ranks == 1:
        sampler = epoch_sampler(lengths, config, grouped=grouped)
        return {"train_dataset": RowDataset(items), "sampler": sampler, "data_collator": batch_of}
    if config.max_tokens_per_batch is None:
        size = config.per_device_train_batch_size * ranks
        together = config.model_copy(update={"per_device_train_batch_size": size})
        split: Sampler[Batch] = RankBatchSampler(epoch_sampler(lengths, together, grouped=grouped), size, ranks)
    else:
        split = token_batch_sampler(lengths, config.max_tokens_per_batch, config, grouped=grouped, ranks=ranks)
    return {
        "train_dataset": BatchDataset(items),
        "sampler": split,
        "data_collator": partial(_whole_batch, batch_of, items[0]),
    }


def _whole_batch(
    batch_of: Callable[[Any], dict[str, Any]], any_item: list[TokenRow], found: list[list[Any]]
) -> dict[str, Any]:
    """A data loader's "batch" of one, which is a whole micro-batch already; without items, one that is not learned."""
    (items,) = found
    return batch_of(items) if items else unlearned(batch_of([any_item]))


def train(
    student: Student,
    rows: Sequence[TokenRow],
    config: TrainingConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    distillation: Distillation | None = None,
    stage: str = "train",
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters); with LoRA its adapters are merged at the end.

    Resumes from the last complete checkpoint in `checkpoints`, with the same final weights as an uninterrupted run.
    Returns early, after a checkpoint, once `stop` is requested.

    Args:
        stage: name of the steps in `metrics.jsonl`; the report draws the curve of `train`.

    Raises:
        ConfigError: packed rows would see each other in this architecture.
        DataError: there are no rows, or the loss is not finite.
    """
    if not rows:
        raise DataError("there is nothing to train on: no row has an answer token within training.max_length")
    on = device()
    items = pack(rows, config.max_length) if config.packing else Items(rows)
    check_head(student.model)
    if config.packing and any(len(item) > 1 for item in items):
        check_packing(student.model, config.max_length)
    fuse_loss(student.model, distillation.row_loss if distillation else cross_entropy_loss(config.loss_chunk_bytes))
    model = with_adapters(student.model, config)
    arguments = training_arguments(config, checkpoints, on)
    ranks = world_size()
    if ranks > 1:
        # An item of the data set is a whole micro-batch.
        arguments.per_device_train_batch_size = 1
    resume = last_whole_checkpoint(checkpoints)
    if resume is not None:
        check_ranks(resume)
    pad_id = with_padding(student.tokenizer, student.limits.tokens).pad_token_id

    def batch_of(items: Sequence[list[TokenRow]]) -> dict[str, Any]:
        extra = distillation.collate([row for item in items for row in item]) if distillation else {}
        return {**collate(items, pad_id), **extra}

    with Watch(reporter, stop, config, distillation.means if distillation else None, stage) as callback:
        trainer = FusedTrainer(
            model=model,
            args=arguments,
            callbacks=[callback],
            **batches(items, config, batch_of, ranks),
        )
        run_trainer(trainer, resume)
    trained_tokens = sum(int(row.learned.sum()) for row in rows)
    outcome = training_outcome(trainer.state, model, trained_tokens, resume)
    # Merging does not call forward, but later users of the model expect logits.
    unfuse_loss(student.model)
    if config.lora is not None:
        student.model = model.merge_and_unload()
    student.model.eval()
    return outcome
