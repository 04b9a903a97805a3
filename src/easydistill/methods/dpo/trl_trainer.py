"""Training on pairs with TRL's DPOTrainer, including CogPO's β for each pair, and every override of its internals.

CogPO (arXiv 2504.09802) is DPO with a β for each pair: loss = −log σ(β_i m_i). TRL only multiplies and divides by β, so
a tensor with one β per pair can take its place; with equal values the result is identical to the bit. Also ours:
tokenisation, the order of pairs, figures by kind of pair, complete checkpoints, Ctrl-C, and the reference's
log-probabilities, which are computed before the first step and journalled, so that a resumed run reads them.

Written against TRL 1.16.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.errors import DataError, MissingExtra
from easydistill.methods.dpo.config import DpoTrainingConfig, PreferenceConfig
from easydistill.methods.dpo.rows import PairRow
from easydistill.methods.dpo.watch import PairWatch
from easydistill.methods.shared.adapters import adapters
from easydistill.methods.shared.checkpoints import last_whole_checkpoint
from easydistill.methods.shared.compat import argument_values, importing_trl
from easydistill.methods.shared.pair_images import PairImages, accompanied, check_sight
from easydistill.methods.shared.ranks import check_ranks, from_all, from_first, raise_if_stopped, rank, world_size
from easydistill.methods.shared.shown_images import check_images
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.trl_parts import COUNTED, PairsTrainer
from easydistill.methods.shared.watch import TrainingOutcome, run_trainer, training_outcome
from easydistill.models.loading import device, with_padding
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

try:
    with importing_trl():
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
        from trl.trainer import dpo_trainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference
except ImportError:
    raise MissingExtra("trl", "Training on pairs") from None

REFERENCE = "reference.jsonl"
"""Journal of reference log-probabilities, beside the checkpoints."""
_SIDES = ("chosen", "rejected")


def train(
    student: Student,
    pairs: Sequence[PairRow],
    config: DpoTrainingConfig,
    preference: PreferenceConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    stage: str = "train",
    vision: Vision | None = None,
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters); with LoRA its adapters are merged at the end.

    Resumes from the last complete checkpoint. Returns early, after a checkpoint, once `stop` is requested.

    Args:
        stage: name of the steps in `metrics.jsonl`.
        vision: of a student that sees images.

    Raises:
        ConfigError: only what sees images is to be trained, and no pair has any.
        DataError: there are no pairs, their β differ with a loss that sorts, or the loss is not finite.
        ModelError: the student would be trained blind.
        Interrupted: `stop` was requested while the reference was computed.
    """
    if not pairs:
        raise DataError("there is nothing to train on: no pair fits into training.max_length")
    if world_size() > 1 and (preference.sorting or (preference.weighting and "sft" in preference.losses)):
        raise DataError("ranks cannot add up a loss of a whole batch\n    → train with it in one process")
    if vision is not None:
        check_images(config, (pair.images for pair in pairs))
    resume = last_whole_checkpoint(checkpoints)
    if resume is not None:
        check_ranks(resume)
    watch = PairWatch(reporter, stop, config, stage)
    with watch:
        trainer = PairTrainer(student, pairs, config, preference, checkpoints, watch, stop, vision)
        run_trainer(trainer, resume)
    strategy().whole(trainer, trainer.model)
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
    """TRL's batches, with the β and the index of every pair, and without what the model does not write in answers.

    Args:
        reference: each pair's log-probabilities under the reference, once they are known.
        images: of a student that sees images: makes what it is given with the tokens.
    """

    reference: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    images: PairImages | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = super().torch_call(examples)
        for number, example in enumerate(examples):
            start = len(example["prompt_ids"])
            for side, name in enumerate(("unlearned_chosen", "unlearned_rejected")):
                for at in example[name]:
                    found["completion_mask"][side * len(examples) + number, start + at] = 0
        found["beta"] = torch.tensor([example["beta"] for example in examples])
        if self.reference:
            sums = [self.reference[example["pair"]] for example in examples]
            found |= {f"ref_{which}_logps": torch.tensor([pair[which] for pair in sums]) for which in _SIDES}
        numbers = [example["pair"] for example in examples]
        if self.images is not None:
            found |= self.images.inputs(found["input_ids"], numbers)
        found["pair"] = torch.tensor(numbers)
        return found


def _for_model(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without the keys that `PairCollator` adds, which the model does not accept."""
    return {key: value for key, value in batch.items() if key not in ("beta", "pair", COUNTED)}


def _number_of(entry: dict[str, Any]) -> int:
    """The pair of an entry of the journal."""
    return int(str(entry["key"]).partition(" ")[0])


@contextlib.contextmanager
def _unhashed() -> Iterator[None]:
    """Spare TRL the hash of all weights, which names a cache of the reference that is not ours: processes that make the
    structure alone have none."""
    known = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = known


class PairTrainer(PairsTrainer, DPOTrainer):
    """TRL's trainer on tokenised pairs."""

    loss_weights: Any

    def __init__(
        self,
        student: Student,
        pairs: Sequence[PairRow],
        config: DpoTrainingConfig,
        preference: PreferenceConfig,
        checkpoints: Path,
        watch: PairWatch,
        stop: StopSignal,
        vision: Vision | None = None,
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
        self._rows = Dataset.from_list(rows)
        self._reference: dict[int, dict[str, Any]] = {}
        self._pad = tokenizer.pad_token_id
        images = None if vision is None else PairImages(vision, pairs, world_size(), config.learns_of_text)
        self._collate = PairCollator(
            pad_token_id=self._pad, max_length=config.max_length, reference=self._reference, images=images
        )
        with _unhashed():
            super().__init__(
                model=student.model,
                args=arguments(config, preference, checkpoints),
                train_dataset=self._rows,
                data_collator=self._collate,
                processing_class=tokenizer,
                peft_config=adapters(student.model, config),
                callbacks=[watch],
            )
        self._share_pairs()

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Compute the reference now, with the ordinary model, or later, where it is to be shared out in parts first."""
        probe = None if self._collate.images is None else self._collate.images.probe()
        if probe is not None:
            # TRL's fused forward is in place by now.
            strategy().decided(lambda: check_sight(self.model, probe))
        if not strategy().shards:
            # A strategy may not have moved it yet.
            self._compute_reference(self.model.to(self.args.device), dataset)
        return dataset

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        # A checkpoint is only written when the journal holds the whole reference, which is that of the first weights.
        if strategy().shards and not self._reference:
            self._compute_reference(self.model_wrapped, self._rows)
        return super()._run_epoch(*args, **kwargs)

    def _compute_reference(self, model: Any, dataset: Any) -> None:
        """Reference log-probabilities under the initial weights, continuing the journal of an earlier attempt.

        The ranks share the pairs, and the first one writes.
        """
        model.eval()
        size = self._config.per_device_train_batch_size
        with Journal(self._journal_path) if rank() == 0 else contextlib.nullcontext() as journal:
            known: dict[int, dict[str, Any]] = from_first({} if journal is None else self._kept(journal))
            order = sorted(range(len(dataset)), key=lambda number: (self._pairs[number].longest, number))
            window = size * world_size()
            with self._watch.task("Reference", len(dataset), len(known)) as task:
                for at in range(0, len(order), window):
                    numbers = order[at : at + window]
                    wanted = [number for number in numbers if number not in known]
                    if not wanted:
                        continue
                    raise_if_stopped(self._stop)
                    entries = self._reference_of(model, dataset, numbers, known)
                    if journal is not None:
                        journal.append(*entries)
                    known |= {_number_of(entry): entry for entry in entries}
                    task.advance(len(wanted))
        self._reference.update(known)

    def _reference_of(
        self, model: Any, dataset: Any, numbers: Sequence[int], known: Container[int]
    ) -> list[dict[str, Any]]:
        """The journal's entries of some pairs, of which each rank computes a part; without those that are known."""
        ranks, mine = world_size(), rank()
        part = numbers[len(numbers) * mine // ranks : len(numbers) * (mine + 1) // ranks]
        part = [number for number in part if number not in known]
        entries: list[dict[str, Any]] = []
        if part or strategy().shards:
            # With parts of the weights, all ranks compute or none.
            batch = self._prepare_inputs(self._collate([dataset[number] for number in part or numbers[:1]]))
            sums = self.compute_ref_log_probs(model, batch)
            entries = [
                {"key": self._key(number), "chosen": float(chosen), "rejected": float(rejected)}
                for number, chosen, rejected in zip(part, *sums, strict=False)
            ]
        return [entry for found in from_all(entries) for entry in found]

    def _kept(self, journal: Journal) -> dict[int, dict[str, Any]]:
        """What an earlier attempt has computed."""
        keys = map(self._key, range(len(self._pairs)))
        return {number: journal.get(key) for number, key in enumerate(keys) if key in journal}

    def _key(self, number: int) -> str:
        """A pair's key in the journal: with its images, since the reference is of them too."""
        images = self._pairs[number].images
        return f"{number} {' '.join(images)}" if images else str(number)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        return super().compute_ref_log_probs(accompanied(model, self._pad), _for_model(inputs))

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Use each pair's own β, and record the margins by kind of pair."""
        seen: list[Any] = []
        called = accompanied(model, self._pad)

        def watched(**values: Any) -> Any:
            seen.append(called(**values))
            return seen[-1]

        common: Any = self.args.beta
        weights = self.loss_weights
        try:
            self.beta = inputs["beta"]
            self.loss_weights = self._weights_here(inputs)
            found = super()._compute_loss(watched, _for_model(inputs), return_outputs)
        finally:
            self.beta, self.loss_weights = common, weights
        width = inputs["completion_mask"].shape[1] - 1
        chosen_B, rejected_B = seen[0].log_probs[:, -width:].detach().sum(1).chunk(2)
        margin_B = chosen_B - inputs["ref_chosen_logps"] - rejected_B + inputs["ref_rejected_logps"]
        margins, numbers = self.accelerator.gather(margin_B), self.accelerator.gather(inputs["pair"])
        for number, margin in zip(numbers.tolist(), margins.tolist(), strict=True):
            self._watch.margins[self._pairs[number].gap].append(margin)
        return found

    def _weights_here(self, inputs: dict[str, Any]) -> list[float]:
        """The weights of the losses on this rank: `sft` is a mean over tokens, and the others are means over pairs."""
        if world_size() == 1 or "sft" not in self.loss_types:
            return list(self.loss_weights)
        pairs = self.accelerator.gather(inputs["pair"])
        tokens = inputs["completion_mask"][: len(inputs["pair"]), 1:].sum()
        mean = int(self.accelerator.gather(tokens).sum()) / len(pairs)
        by_tokens = int(tokens) / (len(inputs["pair"]) * mean)
        return [
            weight * by_tokens if loss == "sft" else weight
            for loss, weight in zip(self.loss_types, self.loss_weights, strict=True)
        ]
