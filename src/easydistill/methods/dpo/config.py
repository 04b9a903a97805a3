"""The `preference` section: how a student learns from pairs of answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from easydistill.config.base import Beta, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share, Unfit
from easydistill.config.training import TrainerConfig

PairLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
_SMOOTHED = {"exo_pair", "robust", "aot", "aot_unpaired"}


class PreferenceConfig(Section):
    """Direct preference optimisation (DPO, arXiv 2305.18290) on TRL, and TRL's other pair losses.

    loss = −log σ(β [log π(y_w|x) − log π_ref(y_w|x) − log π(y_l|x) + log π_ref(y_l|x)]), a mean over pairs,
    where y_w is the chosen answer, y_l the rejected one, and the reference π_ref the student before training.
    """

    beta: Beta = 0.1
    """β: weight of a change in log-probability. Larger values keep the student closer to where it starts. A pair's own
    `beta` overrides it."""
    loss_type: PairLoss | Annotated[list[PairLoss], Field(min_length=1)] = "sigmoid"
    """The loss, or several that are added up; `sigmoid` is DPO."""
    loss_weights: list[NonNegativeFloat] | None = None
    """A weight for each loss; by default 1."""
    label_smoothing: Annotated[Share, Field(lt=0.5)] = 0.0
    """robust, aot, exo_pair: the probability that a pair is the wrong way round."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence"] = "reverse_kl"
    """The divergence from the reference that the loss is derived from (f-DPO, arXiv 2309.16240)."""
    weighting: bool = False
    """Weight pairs by their probability under the student (WPO, arXiv 2406.11827)."""

    @property
    def losses(self) -> list[PairLoss]:
        """The losses as a list."""
        return self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]

    @property
    def sorting(self) -> list[PairLoss]:
        """Losses that sort the answers of a batch: a pair's own β or weight would apply to answers of other pairs."""
        return [loss for loss in self.losses if loss in ("aot", "aot_unpaired")]

    @model_validator(mode="after")
    def _fits(self) -> PreferenceConfig:
        losses = self.losses
        weights = [1.0] * len(losses) if self.loss_weights is None else self.loss_weights
        if len(weights) != len(losses):
            problem = f"there are {len(weights)} loss_weights and {len(losses)} losses"
            raise Unfit(problem, "give each loss one weight")
        if not any(weights):
            raise Unfit("every loss has weight 0: nothing would be learned", "give at least one loss a weight above 0")
        if "exo_pair" in losses and self.label_smoothing == 0:
            raise Unfit("exo_pair divides by label_smoothing", "set label_smoothing, for instance to 0.001")
        if self.label_smoothing and not _SMOOTHED & set(losses):
            known = ", ".join(sorted(_SMOOTHED))
            raise Unfit(f"label_smoothing has no effect with {', '.join(losses)}", f"remove it, or use one of {known}")
        if self.weighting and self.sorting:
            raise Unfit("weighting needs whole pairs, but aot sorts the answers of a batch", "remove one of the two")
        whole = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
        if self.f_divergence != "reverse_kl" and not set(losses) <= whole:
            raise Unfit(
                f"f_divergence cannot be combined with {', '.join(sorted(set(losses) - whole))}",
                "remove one of the two",
            )
        return self


class PairTrainingConfig(TrainerConfig):
    """Training on pairs. The learning rate is small: EasyDistill 1's 2e-5 ruins a student."""

    num_train_epochs: PositiveFloat = 1.0
    """Passes over the pairs."""
    learning_rate: PositiveFloat = 1e-6
    """Peak learning rate; with `lora` ten times as much is usual."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 2
    """Pairs per device and micro-batch."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Longest prompt with its answer, in tokens. A longer answer is cut off, and the report counts those."""
    group_by_length: bool = True
    """Batch pairs of similar length, to save padding."""


class DpoTrainingConfig(PairTrainingConfig):
    """Training on pairs. The learning rate is small: EasyDistill 1's 2e-5 ruins a student."""

    loss_chunk_bytes: Annotated[PositiveInt, Field(ge=1 << 20)] = 64 << 20
    """Bytes of logits to hold at once when scoring held-out pairs; they are computed slice by slice."""
