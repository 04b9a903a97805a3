"""Mixins of our trainers on TRL: no telemetry or model cards, tokenised pairs, generation with the model in training.

They come before TRL's class among the bases. Written against TRL 1.16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Trainer

from easydistill.config.training import TrainerConfig
from easydistill.methods.sft.batching import epoch_sampler
from easydistill.methods.sft.rank_batches import RankBatchSampler
from easydistill.methods.sft.token_batches import BatchDataset
from easydistill.methods.shared.compat import uses_bf16
from easydistill.methods.shared.phases import Phases
from easydistill.methods.shared.ranks import gather_rows, sum_over_ranks, world_size
from easydistill.methods.shared.renamed import load_renamed
from easydistill.methods.shared.strategies.base import strategy
from easydistill.models.loading import device


class QuietTrainer:
    """No telemetry, and no model card in checkpoints. Subclasses say in which order rows come."""

    _sampler: Any = None

    def _send_telemetry(self) -> None:
        """easydistill sends no telemetry."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Without TRL's model card."""
        Trainer._save_checkpoint(self, model, trial)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Not yet where each process holds a part: the whole may be more than the device has room for."""
        if not strategy().shards:
            super()._move_model_to_device(model, device)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not load_renamed(self.model if model is None else model, Path(resume_from_checkpoint)):  # type: ignore[attr-defined]
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _order(self) -> Any:
        """A sampler with `set_epoch`."""
        raise NotImplementedError

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = self._order()
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> Any:
        """Tell the sampler its epoch: accelerate does not reach it behind several processes' parts and the batches that
        a resumed run skips."""
        self._sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)  # type: ignore[misc]


COUNTED = "counted"
"""Of a rank's micro-batch of pairs: how many of them are learned; 0 if it only computes along with the others."""


@dataclass(frozen=True)
class RankPairs:
    """Collates the pairs that a rank has in a step; if it has none, another one that is not learned."""

    collate: Callable[[list[Any]], dict[str, Any]]
    spare: Any

    def __call__(self, drawn: list[list[Any]]) -> dict[str, Any]:
        (pairs,) = drawn
        return {**self.collate(pairs or [self.spare]), COUNTED: torch.tensor(len(pairs))}


class UnevenRanks:
    """accelerate's Accelerator for TRL's figures of a step: ranks with unequal numbers of pairs gather them all.

    Args:
        counted: pairs that this rank learns from.
        means: whether the numbers that TRL gathers are means over a rank's pairs; otherwise they are sums.
    """

    def __init__(self, accelerator: Any, counted: int, *, means: bool) -> None:
        self._accelerator, self._counted, self._means = accelerator, counted, means

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, values: Tensor) -> Tensor:
        """All ranks' values of pairs that are learned, or one number of each rank."""
        if values.ndim == 0:
            # A mean counts once for each pair; whole numbers are sums.
            repeated = self._counted if self._means and values.is_floating_point() else 1
            return gather_rows((values if self._counted else torch.zeros_like(values)).repeat(repeated))
        return gather_rows(values if self._counted else values[:0])

    gather_for_metrics = gather


@contextlib.contextmanager
def uneven_ranks(trainer: Any, counted: int, *, means: bool) -> Iterator[None]:
    """Let a trainer gather its figures as `UnevenRanks` does."""
    alone = trainer.accelerator
    trainer.accelerator = UnevenRanks(alone, counted, means=means)
    try:
        yield
    finally:
        trainer.accelerator = alone


class PairsTrainer(QuietTrainer):
    """For pairs that are tokenised already, with the template, mask and end token of `data/chat`.

    Ranks share each micro-batch's pairs, as `methods/sft/rank_batches.py` shares rows; the loss is a mean over all
    ranks' pairs. Subclasses set `_pairs`, each with the length of its `longest` side, and `_config` before TRL's
    `__init__` runs, and call `_share_pairs` after it.
    """

    averages: ClassVar[bool] = False
    """Whether the numbers that TRL gathers over ranks are means over a rank's pairs."""

    accelerator: Any
    args: Any
    train_dataset: Any
    data_collator: Any
    _pairs: Sequence[Any]
    _config: Any

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _order(self) -> Any:
        size = self._config.per_device_train_batch_size * world_size()
        together = self._config.model_copy(update={"per_device_train_batch_size": size})
        lengths = [pair.longest for pair in self._pairs]
        order = epoch_sampler(lengths, together, grouped=self._config.group_by_length)
        return order if world_size() == 1 else RankBatchSampler(order, size, world_size())

    def _share_pairs(self) -> None:
        """Let the data loader draw a rank's part of a step at once."""
        if world_size() > 1:
            self.args.per_device_train_batch_size = self._train_batch_size = 1
            self.data_collator = RankPairs(self.data_collator, self.train_dataset[0])
            self.train_dataset = BatchDataset(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The mean over this rank's pairs, weighed so that the mean over ranks is that over all pairs."""
        if world_size() == 1:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        counted = int(inputs.pop(COUNTED))
        total = int(sum_over_ranks(torch.tensor(counted)))
        with uneven_ranks(self, counted, means=self.averages):
            loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        return loss * (counted * world_size() / total)


class WritingTrainer(QuietTrainer):
    """For models that generate what they are trained on. Subclasses set `_config` before TRL's `__init__` runs."""

    phases: Phases
    """Where the seconds go; set before TRL's `__init__` runs."""

    accelerator: Any
    args: Any
    model_wrapped: Any
    state: Any
    model: Any
    _config: TrainerConfig
    _dist: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gathered = strategy().gathering(self.model, self._computed())

    def _computed(self) -> torch.dtype | None:
        """The number type of autocast; None without."""
        return torch.bfloat16 if uses_bf16(self._config, device()) else None

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Gradients of a micro-batch, and the answers and scores of a round where it begins one."""
        with self.phases.during("update"):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Its steps are counted as part of the update."""
        optimiser = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        opened = contextlib.ExitStack()

        def begin(*given: Any) -> None:
            opened.enter_context(self.phases.during("update"))

        def end(*given: Any) -> None:
            opened.close()

        optimiser.register_step_pre_hook(begin)
        optimiser.register_step_post_hook(end)
        return optimiser

    @contextlib.contextmanager
    def _generating(self, *, first_only: bool = False) -> Iterator[Any]:
        """The model, unwrapped and without gradients, to generate with. All ranks enter.

        Args:
            first_only: the first rank alone generates.
        """
        if self._gathered is not None:
            with self._gathered.whole(first_only=first_only) as model, self._autocast(cached=True), torch.no_grad():
                yield model
            return
        from trl.models.utils import unwrap_model_for_generation

        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            # Around the whole generation, so that weights are cast once and not for every token.
            self._autocast(),
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield model

    def _generate(self, prompts: list[int]) -> Any:
        """Count only trained tokens in `num_input_tokens_seen`, which checkpoints carry."""
        before = self.state.num_input_tokens_seen
        found = super()._generate(prompts)  # type: ignore[misc]
        trained = torch.tensor(sum(map(len, found[1])), device=self.accelerator.device)
        self.state.num_input_tokens_seen = before + int(self.accelerator.gather(trained).sum())
        return found

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """In bfloat16 if configured: TRL bypasses the forward that accelerate wraps for that purpose."""
        with self._autocast():
            return super().compute_loss(*args, **kwargs)  # type: ignore[misc]

    def _autocast(self, *, cached: bool | None = None) -> Any:
        """
        Args:
            cached: whether weights that were cast are kept for the context; by default as the strategy says.
        """
        on = self.accelerator.device
        enabled = uses_bf16(self._config, on)
        return torch.autocast(on.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=cached)
