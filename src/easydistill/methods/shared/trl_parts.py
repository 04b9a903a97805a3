"""Mixins of our trainers on TRL: no telemetry or model cards, tokenised pairs, generation with the model in training.

They come before TRL's class among the bases. Written against TRL 1.16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Trainer

from easydistill.config.training import TrainerConfig
from easydistill.methods.sft.batching import epoch_sampler
from easydistill.methods.shared.compat import uses_bf16
from easydistill.methods.shared.phases import Phases


class QuietTrainer:
    """No telemetry, and no model card in checkpoints."""

    def _send_telemetry(self) -> None:
        """easydistill sends no telemetry."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Without TRL's model card."""
        Trainer._save_checkpoint(self, model, trial)


class PairsTrainer(QuietTrainer):
    """For pairs that are tokenised already, with the template, mask and end token of `data/chat`.

    Subclasses set `_pairs`, each with the length of its `longest` side, and `_config` before TRL's `__init__` runs.
    """

    _pairs: Sequence[Any]
    _config: Any

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return epoch_sampler([pair.longest for pair in self._pairs], self._config, grouped=self._config.group_by_length)


class WritingTrainer(QuietTrainer):
    """For models that generate what they are trained on. Subclasses set `_config` before TRL's `__init__` runs."""

    phases: Phases
    """Where the seconds go; set before TRL's `__init__` runs."""

    accelerator: Any
    args: Any
    model_wrapped: Any
    state: Any
    _config: TrainerConfig
    _dist: Any

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
    def _generating(self) -> Iterator[Any]:
        """The model, unwrapped and without gradients, to generate with."""
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

    def _autocast(self) -> Any:
        on = self.accelerator.device
        return torch.autocast(on.type, dtype=torch.bfloat16, enabled=uses_bf16(self._config, on))
