"""What our trainers on TRL share: what TRL does besides training, and how a model writes while it is trained.

Mixins, named before TRL's class. Written against TRL 1.16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer

from easydistill.config.training import TrainerConfig
from easydistill.methods.shared.compat import uses_bf16


class QuietTrainer:
    """Nothing goes out, and checkpoints hold no model card."""

    def _send_telemetry(self) -> None:
        """Nothing that easydistill runs reports to anybody."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Without TRL's model card."""
        Trainer._save_checkpoint(self, model, trial)


class WritingTrainer(QuietTrainer):
    """The model that is trained also writes what it is trained on. `_config` is set before TRL's own `__init__`."""

    accelerator: Any
    args: Any
    model_wrapped: Any
    state: Any
    _config: TrainerConfig
    _dist: Any

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
            # Around all steps of generation, so that weights are cast once and not for every token.
            self._autocast(),
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield model

    def _generate(self, prompts: list[int]) -> Any:
        """Keeps `num_input_tokens_seen`, which checkpoints carry, to the tokens that are trained on."""
        before = self.state.num_input_tokens_seen
        found = super()._generate(prompts)  # type: ignore[misc]
        trained = torch.tensor(sum(map(len, found[1])), device=self.accelerator.device)
        self.state.num_input_tokens_seen = before + int(self.accelerator.gather(trained).sum())
        return found

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """In bfloat16 where that is asked for: TRL goes round the forward that accelerate has wrapped for it."""
        with self._autocast():
            return super().compute_loss(*args, **kwargs)  # type: ignore[misc]

    def _autocast(self) -> Any:
        on = self.accelerator.device
        return torch.autocast(on.type, dtype=torch.bfloat16, enabled=uses_bf16(self._config, on))
