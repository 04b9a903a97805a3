"""Training on pairs with TRL's DPOTrainer, including CogPO's β for each pair, and every override of its internals.

CogPO (arXiv 2504.09802) is DPO with a β for each pair: loss = −log σ(β_i m_i). TRL only multiplies and divides by β, so
a tensor with one β per pair can take its place; with equal values the result is identical to the bit. Also ours:
tokenisation, the order of pairs, figures by kind of pair, complete checkpoints, Ctrl-C, and the reference's
log-probabilities, which are computed before the first step and journalled, so that a resumed run reads them.

Written against TRL 1.16.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerControl, TrainerState

from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError, MissingExtra
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.rows import PairRow
from easydistill.methods.shared.adapters import adapters
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import argument_values, importing_trl
from easydistill.methods.shared.trl_parts import PairsTrainer
from easydistill.methods.shared.watch import TrainingOutcome, Watch, run_trainer, training_outcome
from easydistill.models.loading import device, with_padding
from easydistill.models.student import Student

try:
    with importing_trl():
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference
except ImportError:
    raise MissingExtra("trl", "Training on pairs") from None

REFERENCE = "reference.jsonl"
"""Journal of reference log-probabilities, beside the checkpoints."""
_KEPT = {
    "entropy": "entropy",
    "rewards/margins": "reward_margin",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
    "mean_token_accuracy": "chosen_token_accuracy",
}
"""TRL's figures to log, and our names for them."""


def train(
    student: Student,
    pairs: Sequence[PairRow],
    config: DpoTrainingConfig,
    preference: PreferenceConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    stage: str = "train",
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters); with LoRA its adapters are merged at the end.

    Resumes from the last complete checkpoint. Returns early, after a checkpoint, once `stop` is requested.

    Args:
        stage: name of the steps in `metrics.jsonl`.

    Raises:
        DataError: there are no pairs, their β differ with a loss that sorts, or the loss is not finite.
        Interrupted: `stop` was requested while the reference was computed.
    """
    if not pairs:
        raise DataError("there is nothing to train on: no pair fits into training.max_length")
    resume = last_whole_checkpoint(checkpoints)
    watch = PairWatch(reporter, stop, config, stage)
    with watch:
        trainer = PairTrainer(student, pairs, config, preference, checkpoints, watch, stop)
        run_trainer(trainer, resume)
    trained_tokens = sum(sum(pair.learned_tokens) for pair in pairs)
    outcome = training_outcome(trainer.state, trainer.model, trained_tokens, resume)
    # TRL patches its own forward onto the instance; later users of the model expect logits.
    student.model = trainer.model.merge_and_unload() if config.lora is not None else trainer.model
    student.model.__dict__.pop("forward", None)
    student.model.eval()
    return outcome


def arguments(config: DpoTrainingConfig, preference: PreferenceConfig, checkpoints: Path) -> DPOConfig:
    """TRL's arguments, with our values wherever transformers has the same argument."""
    return DPOConfig(
        **argument_values(config, checkpoints, device()),
        beta=preference.beta,
        loss_type=list(preference.losses),
        loss_weights=preference.loss_weights,
        label_smoothing=preference.label_smoothing,
        f_divergence_type=preference.f_divergence,
        use_weighting=preference.weighting,
        max_length=config.max_length,
        precompute_ref_log_probs=True,
    )


@dataclasses.dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batches, with the β and the index of every pair, and without what the model does not write in answers."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = super().torch_call(examples)
        for number, example in enumerate(examples):
            start = len(example["prompt_ids"])
            for side, name in enumerate(("unlearned_chosen", "unlearned_rejected")):
                for at in example[name]:
                    found["completion_mask"][side * len(examples) + number, start + at] = 0
        found["beta"] = torch.tensor([example["beta"] for example in examples])
        found["pair"] = torch.tensor([example["pair"] for example in examples])
        return found


def _for_model(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the keys that `PairCollator` adds, which the model does not accept."""
    return {key: value for key, value in batch.items() if key not in ("beta", "pair")}


class PairWatch(Watch):
    """Also logs margins and accuracy over the pairs since the last entry."""

    def __init__(self, reporter: Reporter, stop: StopSignal, config: DpoTrainingConfig, stage: str = "train") -> None:
        super().__init__(reporter, stop, config, stage=stage)
        self.margins: dict[str, list[float]] = defaultdict(list)
        """Margins without β, by kind of pair."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if not logs or "loss" not in logs:
            return
        found = {ours: logs[theirs] for theirs, ours in _KEPT.items() if theirs in logs}
        if len(self.margins) > 1:
            found |= {f"margin_{gap}": fmean(values) for gap, values in sorted(self.margins.items())}
        margins = [value for values in self.margins.values() for value in values]
        found["margin"] = fmean(margins)
        # TRL counts a tie as lost; here it counts half, as in the held-out figures.
        found["reward_accuracy"] = fmean((margin > 0) + 0.5 * (margin == 0) for margin in margins)
        self._reporter.metric("preferences", step=state.global_step, **found)
        self.margins.clear()


class PairTrainer(PairsTrainer, DPOTrainer):
    """TRL's trainer on tokenised pairs."""

    def __init__(
        self,
        student: Student,
        pairs: Sequence[PairRow],
        config: DpoTrainingConfig,
        preference: PreferenceConfig,
        checkpoints: Path,
        watch: PairWatch,
        stop: StopSignal,
    ) -> None:
        self._pairs, self._config, self._watch, self._stop = pairs, config, watch, stop
        self._journal_path = checkpoints / REFERENCE
        betas = [pair.beta if pair.beta is not None else preference.beta for pair in pairs]
        if preference.sorting and len(set(betas)) > 1:
            raise DataError(
                f"{preference.sorting[0]} sorts the answers of a batch, but the pairs have different β\n"
                "    → use another preference.loss_type, or give all pairs the same `beta`"
            )
        tokenizer = with_padding(student.tokenizer, student.limits.tokens)
        rows = [
            {
                "prompt_ids": pair.prompt,
                "chosen_ids": pair.chosen,
                "rejected_ids": pair.rejected,
                "unlearned_chosen": sorted(pair.unlearned[0]),
                "unlearned_rejected": sorted(pair.unlearned[1]),
                "beta": beta,
                "pair": number,
            }
            for number, (pair, beta) in enumerate(zip(pairs, betas, strict=True))
        ]
        super().__init__(
            model=student.model,
            args=arguments(config, preference, checkpoints),
            train_dataset=Dataset.from_list(rows),
            data_collator=PairCollator(pad_token_id=tokenizer.pad_token_id, max_length=config.max_length),
            processing_class=tokenizer,
            peft_config=adapters(student.model, config),
            callbacks=[watch],
        )

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Reference log-probabilities under the initial weights, continuing the journal of an earlier attempt."""
        self.model.eval()
        with Journal(self._journal_path) as journal:
            known = [str(number) in journal for number in range(len(dataset))]
            order = sorted(range(len(dataset)), key=lambda number: (self._pairs[number].longest, number))
            with self._watch.task("Reference", len(dataset), sum(known)) as task:
                for at in range(0, len(order), batch_size):
                    numbers = [number for number in order[at : at + batch_size] if not known[number]]
                    if not numbers:
                        continue
                    self._stop.raise_if_requested()
                    batch = self._prepare_inputs(self.data_collator([dataset[number] for number in numbers]))
                    sums = self.compute_ref_log_probs(self.model, batch)
                    journal.append(
                        *(
                            {"key": str(number), "chosen": float(chosen), "rejected": float(rejected)}
                            for number, chosen, rejected in zip(numbers, *sums, strict=True)
                        )
                    )
                    task.advance(len(numbers))
            found = [journal.get(str(number)) for number in range(len(dataset))]
        for side in ("chosen", "rejected"):
            dataset = dataset.add_column(f"ref_{side}_logps", [entry[side] for entry in found])
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        return super().compute_ref_log_probs(model, _for_model(inputs))

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Use each pair's own β, and record the margins by kind of pair."""
        seen: list[Any] = []

        def watched(**values: Any) -> Any:
            seen.append(model(**values))
            return seen[-1]

        common: Any = self.args.beta
        try:
            self.beta = inputs["beta"]
            found = super()._compute_loss(watched, _for_model(inputs), return_outputs)
        finally:
            self.beta = common
        width = inputs["completion_mask"].shape[1] - 1
        chosen_B, rejected_B = seen[0].log_probs[:, -width:].detach().sum(1).chunk(2)
        margin_B = chosen_B - inputs["ref_chosen_logps"] - rejected_B + inputs["ref_rejected_logps"]
        for number, margin in zip(inputs["pair"].tolist(), margin_B.tolist(), strict=True):
            self._watch.margins[self._pairs[number].gap].append(margin)
        return found
