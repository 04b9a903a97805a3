"""Training on rows of tokens: supervised fine-tuning, and distillation from stored signals.

    loss = (1/N) Σ_n loss_n,   N = answer tokens of the optimiser step

where loss_n is −log p_student(answer token n | the tokens before it), or that combined with the teacher's signal
(`methods/distil/row_loss.py`). In: token rows and a student. Out: the student, trained in place. Weights are in the
student's dtype; the computation is in bfloat16 on devices that are fast at it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import ConfigError, DataError
from easydistill.methods.distil.row_loss import Distillation
from easydistill.methods.sft.batching import TokenRow, pack
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.sft.cpu_attention import attention_in_float32
from easydistill.methods.sft.feeding import Feed
from easydistill.methods.sft.image_features import on_features
from easydistill.methods.sft.items import Items
from easydistill.methods.sft.packing import check_packing
from easydistill.methods.sft.varlen import attention_of, can_attend, collate_flat, use_varlen
from easydistill.methods.shared.adapters import with_adapters
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import (
    FusedTrainer,
    check_head,
    cross_entropy_loss,
    fuse_loss,
    training_arguments,
    unfuse_loss,
    uses_bf16,
)
from easydistill.methods.shared.compiling import (
    LENGTH_MULTIPLE,
    CompiledLayers,
    fast_matrix_products,
    pass_through,
    wants_compiling,
)
from easydistill.methods.shared.ranks import check_ranks
from easydistill.methods.shared.shown_images import check_images
from easydistill.methods.shared.sight import images_are_not_packed
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.watch import TrainingOutcome, Watch, run_trainer, training_outcome
from easydistill.models.flat_rows import takes_flat_rows
from easydistill.models.loading import device, with_padding
from easydistill.models.rows_attention import rows_attention
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

LOOKED_AT = 200
"""Rows among which one with an image is looked for, to see whether the student sees it."""


def train(
    student: Student,
    rows: Sequence[TokenRow],
    config: TrainingConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    distillation: Distillation | None = None,
    stage: str = "train",
    vision: Vision | None = None,
    features: Path | None = None,
) -> TrainingOutcome:
    """Train `student` in place (on the CPU and in `training.weights` when it enters); adapters are merged at the end.

    Resumes from the last complete checkpoint in `checkpoints`, with the same final weights as an uninterrupted run.
    Returns early, after a checkpoint, once `stop` is requested.

    Args:
        stage: name of the steps in `metrics.jsonl`; the report draws the curve of `train`.
        vision: of a student that sees images.
        features: where its features of images may be kept; None to compute them in every step.

    Raises:
        ConfigError: packed rows would see each other in this architecture, or have images; or features of images are
            to be kept, and cannot be; or only what sees images is to be trained, and no row has any.
        DataError: there are no rows, or the loss is not finite.
    """
    if not rows:
        raise DataError("there is nothing to train on: no row has an answer token within training.max_length")
    if config.packing and vision is not None:
        raise ConfigError(images_are_not_packed())
    if vision is not None:
        check_images(config, (row.images for row in rows))
    arguments = training_arguments(config, checkpoints, device())
    bf16 = uses_bf16(config, arguments.device)
    items = pack(rows, config.max_length) if config.packing else Items(rows)
    pad = with_padding(student.tokenizer, student.limits.tokens).pad_token_id
    feed = Feed(items, config, pad, distillation, arguments.world_size, vision=vision)
    strategy().decided(lambda: check_head(student.model, _sight_test(feed)))
    feed, undo = _packed(student.model, feed, arguments.device, bf16, reporter)
    fuse_loss(student.model, distillation.row_loss if distillation else cross_entropy_loss(config.loss_chunk_bytes))
    model = with_adapters(student.model, config)
    if feed.whole_batches:
        arguments.per_device_train_batch_size = 1
    sees = student.processor is not None
    if not config.packing and not sees and not strategy().shards and arguments.device.type == "cpu":
        feed = replace(feed, unpadded=takes_flat_rows(model))
    resume = last_whole_checkpoint(checkpoints)
    if resume is not None:
        check_ranks(resume)
    takes_pixels = contextlib.ExitStack()
    with (
        fast_matrix_products(arguments.device, bf16),
        attention_in_float32(arguments.device, bf16),
        rows_attention(),
        contextlib.nullcontext(on_features(student.model, feed, features, bf16, reporter, stop, takes_pixels)) as feed,
        _compiled(student, feed, arguments.device, bf16, reporter) as (feed, layers),
        Watch(reporter, stop, config, distillation.means if distillation else None, stage, layers) as callback,
    ):
        trainer = FusedTrainer(
            model=model,
            args=arguments,
            train_dataset=feed.dataset,
            data_collator=feed.collate,
            callbacks=[callback],
            sampler=feed.sampler,
        )
        run_trainer(trainer, resume)
    strategy().whole(trainer, model)
    takes_pixels.close()
    undo()
    trained_tokens = sum(int(row.learned.sum()) for row in rows)
    outcome = training_outcome(trainer.state, model, trained_tokens, resume)
    # Merging does not call forward, but later users of the model expect logits.
    unfuse_loss(student.model)
    if config.lora is not None:
        student.model = model.merge_and_unload()
    student.model.eval()
    return outcome


def _sight_test(feed: Feed) -> Mapping[str, Any] | None:
    """What a student that sees images is given with a short row that has some; None where none of the first rows
    does."""
    if feed.vision is None:
        return None
    rows = [item for item in feed.items[:LOOKED_AT] if item[0].images]
    if not rows:
        return None
    return feed.shown([min(rows, key=lambda item: len(item[0]))])


def _packed(
    model: Any, feed: Feed, on: torch.device, bf16: bool, reporter: Reporter
) -> tuple[Feed, Callable[[], object]]:
    """Check that packed rows stay apart, and let them be one sequence where attention by their bounds is to be had.

    Returns:
        The feed, and what undoes the change of the model.

    Raises:
        ConfigError: packed rows would see each other.
    """
    longest = feed.config.max_length
    if not feed.config.packing or all(len(item) == 1 for item in feed.items):
        return feed, lambda: None
    dtype = torch.bfloat16 if bf16 else next(model.parameters()).dtype
    if not can_attend(on, dtype, model, longest):
        strategy().decided(lambda: check_packing(model, longest))
        return feed, lambda: None
    if strategy().shards:
        # The operator could only be tried with the whole student on a GPU, which need not have room for it.
        strategy().decided(lambda: check_packing(model, longest))
        reporter.say(f"  note: under {strategy().name} packed rows are kept apart with a mask, which is slower")
        return feed, lambda: None
    before = attention_of(model)
    problem = strategy().decided(lambda: _varlen_problem(model, on, bf16, longest))
    if problem is not None:
        model.set_attn_implementation(before)
        strategy().decided(lambda: check_packing(model, longest))
        reporter.say(f"  note: packed rows are kept apart with a mask, which is slower: {problem}")
        return feed, lambda: None
    use_varlen(model)
    return replace(feed, flat=True), lambda: model.set_attn_implementation(before)


def _varlen_problem(model: Any, on: torch.device, bf16: bool, longest: int) -> str | None:
    """Why a model's packed rows cannot be kept apart by their bounds; None if they can."""
    model.to(on)
    try:
        with torch.autocast(on.type, torch.bfloat16, enabled=bf16):
            check_packing(
                model, longest, lambda items, pad: collate_flat(items, pad, longest), lambda: use_varlen(model)
            )
    except ConfigError as error:
        return error.issues[0].problem
    return None


@contextlib.contextmanager
def _compiled(
    student: Student, feed: Feed, on: torch.device, bf16: bool, reporter: Reporter
) -> Iterator[tuple[Feed, CompiledLayers | None]]:
    """The feed for compiled layers, and the layers, if `training.compile` asks for it."""
    if not strategy().compiles or not wants_compiling(feed.config.compile, on, feed.expected_batches):
        yield feed, None
        return
    widened = replace(feed, multiple=LENGTH_MULTIPLE, unpadded=False)
    widest = max(widened.lengths)
    feed = widened if student.limits.within(widest) == widest else replace(feed, unpadded=False)
    layers = CompiledLayers(student.model, dynamic=not feed.same_shape, say=reporter.say)
    student.model.to(on).train()
    layers.warm_up(lambda: pass_through(student.model, feed.first(), bf16))
    student.model.zero_grad()
    try:
        yield feed, layers
    finally:
        layers.restore()
