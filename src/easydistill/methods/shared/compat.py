"""Everything that depends on a library's internals, except TRL's. Each dependency has a contract test.

Written against transformers 5.16–5.24; constraints pin the version that the tests run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from easydistill.config.training import TrainerConfig
from easydistill.errors import ModelError
from easydistill.kernels.linear_cross_entropy import linear_cross_entropy
from easydistill.methods.sft.batching import BOUNDS, ROW_BOUNDS
from easydistill.methods.shared.renamed import load_renamed
from easydistill.methods.shared.strategies.base import strategy
from easydistill.models import loading
from easydistill.models.flat_rows import flat_hidden, not_packed
from easydistill.models.head import Head, body_of, image_inputs
from easydistill.models.loading import computes_well_in_bf16
from easydistill.models.multimodal.processors import TYPE_IDS
from easydistill.models.rows_attention import RowsLayout


@contextlib.contextmanager
def importing_trl() -> Iterator[None]:
    """Import TRL's trainers in this context if they can generate with vLLM.

    They import vLLM wherever it is installed, which takes longer than everything else that a training imports. Without
    a GPU they never use it, so it is hidden from them.
    """
    from trl import import_utils

    known = import_utils.is_vllm_available
    with warnings.catch_warnings():
        # TRL names the versions that it supports even where vLLM is not used.
        warnings.filterwarnings("ignore", "TRL currently supports vLLM", UserWarning)
        if loading.device().type == "cpu":
            import_utils.is_vllm_available = lambda min_version=None: False
        try:
            yield
        finally:
            import_utils.is_vllm_available = known


_OPTIMISERS = {"adamw_8bit": "adamw_torch_8bit"}
"""transformers' names of optimisers, where they are not ours. Its own `adamw_8bit` is bitsandbytes', which does not
round updates of bfloat16 weights at random."""


def training_arguments(config: TrainerConfig, directory: Path, device: torch.device) -> TrainingArguments:
    """The training section as arguments of the installed transformers.

    transformers 5 dropped `warmup_ratio`: `warmup_steps` below 1 is a ratio there.
    """
    accepted = set(inspect.signature(TrainingArguments.__init__).parameters)
    warmup = config.warmup_steps if config.warmup_steps is not None else config.warmup_ratio
    # transformers 5.24 has a new name for it, and warns users of the old one.
    recomputing = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in accepted)
    values: dict[str, Any] = {
        "output_dir": str(directory),
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "warmup_steps": warmup,
        "lr_scheduler_type": config.lr_scheduler_type,
        "optim": _OPTIMISERS.get(config.optim, config.optim),
        # For bfloat16 weights, whose smaller updates would else be lost; read by torchao's optimisers alone.
        "optim_args": "bf16_stochastic_round=True" if config.optim == "adamw_8bit" else None,
        "bf16": uses_bf16(config, device),
        recomputing: config.gradient_checkpointing,
        "seed": config.seed,
        "logging_strategy": "steps",
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        # Checkpoints are rotated by our callback, which knows which of them are whole.
        "save_total_limit": None,
        "dataloader_num_workers": config.dataloader_num_workers,
        "dataloader_pin_memory": device.type == "cuda",
        "remove_unused_columns": False,
        "average_tokens_across_devices": True,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "accelerator_config": {"non_blocking": device.type == "cuda"},
        **strategy().arguments(config),
    }
    unknown = set(values) - accepted
    if unknown:
        raise ModelError(
            f"the installed transformers does not know {', '.join(sorted(unknown))}\n"
            "    → install a version that this release of easydistill supports (see pyproject.toml)"
        )
    return TrainingArguments(**values)


def argument_values(config: TrainerConfig, directory: Path, device: torch.device) -> dict[str, Any]:
    """The same as keyword arguments for TRL's subclasses, so that their own defaults do not apply."""
    plain = training_arguments(config, directory, device)
    return {field.name: getattr(plain, field.name) for field in dataclasses.fields(TrainingArguments) if field.init}


def uses_bf16(config: TrainerConfig, device: torch.device) -> bool:
    """Whether training computes in bfloat16."""
    return computes_well_in_bf16(device) if config.bf16 == "auto" else config.bf16


def check_head(model: Any, shown: Mapping[str, Any] | None = None) -> None:
    """Check that body and `Head` together give the model's own logits.

    Args:
        shown: `input_ids` and what the model is given with them, of a row with images; by default a few tokens.

    Raises:
        ModelError: the architecture does something to its logits that `Head` does not know.
    """
    on = next(model.parameters()).device
    if shown is None:
        shown = {"input_ids": torch.arange(6)[None] % model.config.get_text_config().vocab_size}
    inputs = {name: value.to(on) if isinstance(value, Tensor) else value for name, value in shown.items()}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        own_BTV = model(**inputs, use_cache=False).logits
        try:
            hidden_BTD = body_of(model)(**inputs, use_cache=False).last_hidden_state
            ours_BTV = Head.of(model).logits(hidden_BTD)
            same = torch.allclose(own_BTV.float(), ours_BTV.float(), rtol=1e-2, atol=1e-2)
        except (AttributeError, TypeError, RuntimeError):
            # The body has another signature or output, or the head another shape, than `Head` knows.
            same = False
    model.train(was_training)
    if not same:
        raise ModelError(
            f"{type(model).__name__}: its logits are not its output layer applied to its hidden states, "
            "so it cannot be trained with the fused loss\n    → please report this architecture"
        )


class RowLoss(Protocol):
    """A loss summed over the learned tokens of a micro-batch, in nats."""

    def __call__(self, rows_ND: Tensor, head: Head, target_N: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        """Row n of `rows_ND` predicts `target_N[n]`; `extra` holds the collator's other tensors."""


def cross_entropy_loss(chunk_bytes: int | None) -> RowLoss:
    """Cross-entropy, the row loss of supervised fine-tuning."""

    def loss(rows_ND: Tensor, head: Head, target_N: Tensor, extra: Mapping[str, Tensor]) -> Tensor:
        return linear_cross_entropy(rows_ND, head, target_N, chunk_bytes)

    return loss


def fuse_loss(model: Any, row_loss: RowLoss) -> None:
    """Make `model.forward` return `row_loss`, in place, without materialising the logits of all rows.

    Patched on the instance, so that wrappers (DDP, FSDP, PEFT, autocast) call it as usual. The loss is the sum over
    learned tokens divided by `num_items_in_batch`, the count over the whole optimiser step.
    """
    body, seen = body_of(model), image_inputs(model)
    typed = seen & frozenset(TYPE_IDS)

    def forward(
        self: Any,
        input_ids: Tensor,
        labels: Tensor,
        learned_N: Tensor,
        target_N: Tensor,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **extra: Any,
    ) -> dict[str, Tensor]:
        bounds = {name: extra.pop(name) for name in BOUNDS if name in extra}
        images = {name: extra.pop(name) for name in seen if name in extra}
        assert not images or typed <= images.keys(), f"the model would take images for text without {sorted(typed)}"
        rows = extra.pop(ROW_BOUNDS, None)
        if rows is not None:
            assert position_ids is not None and not images
            shared, *lengths = rows.tolist()
            hidden_ND = flat_hidden(body, input_ids, position_ids, RowsLayout(shared, tuple(lengths)))
        else:
            with contextlib.nullcontext() if position_ids is not None else not_packed():
                out = body(input_ids=input_ids, position_ids=position_ids, use_cache=False, **bounds, **images)
            hidden_ND = out.last_hidden_state.flatten(0, 1)
        rows_ND = hidden_ND.index_select(0, learned_N)
        total = row_loss(rows_ND, Head.of(self), target_N, extra)
        count = len(target_N) if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}

    model.forward = types.MethodType(forward, model)


def unfuse_loss(model: Any) -> None:
    """Undo `fuse_loss`."""
    model.__dict__.pop("forward", None)


class FusedTrainer(Trainer):
    """transformers' Trainer with our sampler and a loss that is already divided by the global token count."""

    def __init__(self, *args: Any, sampler: Sampler[Any] | None, **kwargs: Any) -> None:
        """
        Args:
            sampler: with `set_epoch`; None for a loop of one's own.
        """
        super().__init__(*args, **kwargs)
        # One process, one device: on several, Trainer would copy the model, and the copies would call its forward.
        self.args._n_gpu = min(1, self.args.n_gpu)
        self._epoch_sampler: Any = sampler
        # `fuse_loss` divides by num_items_in_batch; these three make Trainer count it and not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._epoch_sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> Any:
        """Tell the sampler its epoch: accelerate does not reach it behind several processes' parts and the batches that
        a resumed run skips."""
        self._epoch_sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Not yet where each process holds a part: the whole may be more than the device has room for."""
        if not strategy().shards:
            super()._move_model_to_device(model, device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not load_renamed(self.model if model is None else model, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: nobody reads the figure, and counting walks through all modules in every micro-batch."""
        return 0
