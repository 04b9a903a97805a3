"""Shared by the on-policy trainers: which sequences the student generates, rollouts, and log-probabilities of tokens.

In: prompts, the teacher's answers to them if there are any, and models. Out: sequences to train on (`Written`), and the
log-probability of each of their tokens, in nats. Every draw depends on (seed, step, row) alone, so that a resumed run
continues as if it had not been interrupted.

Shapes: N tokens, D hidden width, V vocabulary, B rows, T positions. Row t predicts token t+1.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import Sampler

from easydistill.config.training import TrainerConfig
from easydistill.contracts.teacher import row_seed
from easydistill.data.batches import batches_by_length
from easydistill.engine.interrupt import StopSignal
from easydistill.kernels.logprobs import completion_logprobs, listed_logprobs
from easydistill.models.decoding.graphs import DecodeGraphs
from easydistill.models.decoding.packed import packed_linears
from easydistill.models.padding import reads_padding
from easydistill.models.sampling import SeededSampler, generate_batch
from easydistill.teachers.listed import Listed
from easydistill.teachers.transformers import MAX_BATCH_ROWS

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

BATCH_TOKENS = 16_384
"""Tokens, padding included, that are generated or scored at once."""
REPEATED = 4
"""Length of the n-grams whose recurrence counts as repetition."""


# --- rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and the teacher's answer if there is one, with its own prompt tokens: templates may differ."""

    id: str
    prompt: list[int]
    label: tuple[list[int], list[int]] | None = None
    """(prompt, completion)."""
    images: tuple[str, ...] = ()
    """The digests of the prompt's images, in the order of their tokens."""
    taught_by: str = ""
    """The name of its teacher, if there are several."""


@dataclass(frozen=True)
class Written:
    """A sequence to train on: `completion` is learned, given `prompt`."""

    id: str
    prompt: list[int]
    completion: list[int]
    rolled: bool
    """Whether the student generated it."""
    ended: bool = True
    old: list[float] | None = None
    """log p_old of each completion token."""
    teacher: list[float] | None = None
    """log p_T of each completion token; NaN where the teacher gives none."""
    images: tuple[str, ...] = ()
    """The digests of the prompt's images."""
    listed: list[list[int]] | None = None
    """At each completion token, the teacher's most probable tokens but for this one."""
    listed_logprobs: list[list[float]] | None = None
    """log p_T of those."""
    taught_by: str = ""
    """The name of the row's teacher, if there are several."""

    @property
    def learned(self) -> list[bool]:
        """For each completion token, whether it is learned: all but those without a teacher's log-probability."""
        return [True] * len(self.completion) if self.teacher is None else [not math.isnan(x) for x in self.teacher]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.completion


class PromptOrder(Sampler[int]):
    """The rows of each optimiser step, determined by seed and epoch alone.

    An epoch's last batch is filled up from the start of the epoch.

    Args:
        rows: number of rows.
        batch: rows per step.
        repeats: how often each batch is repeated (TRL's trainer reads a batch once per micro-batch).
    """

    def __init__(self, rows: int, batch: int, seed: int, repeats: int = 1) -> None:
        self._rows, self._batch, self._seed, self._repeats = rows, batch, seed, repeats
        self._epoch = 0
        self._last: tuple[int, list[list[int]]] | None = None

    @property
    def steps(self) -> int:
        """Steps per epoch."""
        return -(-self._rows // self._batch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self.steps * self._batch * self._repeats

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows of each step of an epoch."""
        if self._last is not None and self._last[0] == epoch:
            return self._last[1]
        order = list(range(self._rows))
        random.Random(f"{self._seed}:{epoch}").shuffle(order)
        filled = [order[at % self._rows] for at in range(self.steps * self._batch)]
        found = [filled[at : at + self._batch] for at in range(0, len(filled), self._batch)]
        self._last = (epoch, found)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter([index for batch in self.batches(self._epoch) for _ in range(self._repeats) for index in batch])


def rolled_positions(share: float, step: int, count: int, seed: int) -> set[int]:
    """Which of a step's `count` sequences the student generates; over all steps exactly `share` of them."""
    wanted = math.floor(share * count * (step + 1) + 1e-9) - math.floor(share * count * step + 1e-9)
    return set(random.Random(f"{seed}:{step}:mix").sample(range(count), min(count, wanted)))


def assign(row: PromptRow, rolled: bool) -> Written:
    """The row for the student to answer (completion still empty), or with the teacher's answer."""
    if rolled:
        return Written(row.id, row.prompt, [], rolled=True, images=row.images, taught_by=row.taught_by)
    assert row.label is not None, "the job requires labels if rollout_share is below 1"
    return Written(row.id, *row.label, rolled=False, images=row.images, taught_by=row.taught_by)


def batch_rows(config: TrainerConfig) -> int:
    """Rows per optimiser step."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps


# --- rollouts -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def roll_out(
    model: Any,
    prompts: Sequence[tuple[str, list[int]]],
    step: int,
    eos_ids: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    numbers: Sequence[int] | None = None,
    images: Sequence[tuple[str, ...]] = (),
    vision: Vision | None = None,
) -> list[Written]:
    """The student's answers to (id, prompt) pairs, each drawn from its own random stream (seed, step, row).

    Args:
        numbers: of the prompts among all that are answered now, if other processes answer a part of them.
        images: the digests of each prompt's images; empty if none has any.
        vision: of a student that sees them; it then writes no placeholders of any.
    """
    images = images or [()] * len(prompts)
    numbers = range(len(prompts)) if numbers is None else numbers
    was_training = model.training
    model.eval()
    found: dict[int, Written] = {}
    lengths = [len(prompt) for _, prompt in prompts]
    equal = len(set(lengths)) > 1 and reads_padding(model, prompts[0][1])
    graphs = DecodeGraphs()
    with packed_linears(model, max_new_tokens if prompts else 0):
        for batch in batches_by_length(lengths, MAX_BATCH_ROWS, BATCH_TOKENS, max_new_tokens, equal=equal):
            seeds = [row_seed(seed, f"{step}:{numbers[index]}:{prompts[index][0]}") for index in batch]
            sampler = SeededSampler(seeds, temperature=temperature)
            asked = [prompts[index][1] for index in batch]
            shown = [images[index] for index in batch]
            answers = generate_batch(
                model, asked, eos_ids, max_new_tokens, sampler, graphs=graphs, vision=vision, images=shown
            )
            for index, answer in zip(batch, answers, strict=True):
                written = [*answer.ids, *([] if answer.end is None else [answer.end])]
                found[index] = Written(*prompts[index], written, rolled=True, ended=answer.ended, images=images[index])
    model.train(was_training)
    return [found[index] for index in range(len(prompts))]


class Writer(Protocol):
    """What generates the student's answers."""

    def load(self, model: Any) -> None:
        """Take over the student's present weights."""

    def write(
        self,
        model: Any,
        prompts: Sequence[tuple[str, list[int]]],
        step: int,
        eos_ids: frozenset[int],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        numbers: Sequence[int] | None = None,
        images: Sequence[tuple[str, ...]] = (),
    ) -> list[Written]:
        """As `roll_out`."""

    def close(self) -> None:
        """Free what it holds."""


class ModelWriter:
    """The model in training generates, through transformers.

    Args:
        vision: of a student that sees images.
    """

    def __init__(self, vision: Vision | None = None) -> None:
        self._vision = vision

    def load(self, model: Any) -> None:
        """Nothing to do: its weights are the present ones."""

    def write(
        self,
        model: Any,
        prompts: Sequence[tuple[str, list[int]]],
        step: int,
        eos_ids: frozenset[int],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        numbers: Sequence[int] | None = None,
        images: Sequence[tuple[str, ...]] = (),
    ) -> list[Written]:
        return roll_out(model, prompts, step, eos_ids, max_new_tokens, temperature, seed, numbers, images, self._vision)

    def close(self) -> None:
        """Nothing is held."""


def repetition(ids: Sequence[int]) -> float:
    """Share of an answer's n-grams that occur earlier in it."""
    grams = Counter(tuple(ids[at : at + REPEATED]) for at in range(len(ids) - REPEATED + 1))
    return 1 - len(grams) / grams.total() if grams else 0.0


def describe(rollouts: Sequence[Written]) -> dict[str, float]:
    """Figures of rollouts: mean length, repetition, share that ended by itself, reverse KL, share without scores."""
    if not rollouts:
        return {}
    return {
        "rollout_length": fmean(len(item.completion) for item in rollouts),
        "ended": fmean(item.ended for item in rollouts),
        "repetition": fmean(repetition(item.completion) for item in rollouts),
        **_against_teacher(rollouts),
    }


def _against_teacher(rollouts: Sequence[Written]) -> dict[str, float]:
    both = [pair for item in rollouts for pair in zip(item.old or (), item.teacher or (), strict=True)]
    gaps = [own - teacher for own, teacher in both if not math.isnan(teacher)]
    return {
        **({"reverse_kl": fmean(gaps)} if gaps else {}),
        **({"unscored": 1 - len(gaps) / len(both)} if both else {}),
    }


# --- scores -------------------------------------------------------------------------------------------------------


class TeacherScores(Protocol):
    """Source of log p_T of given tokens: a model in this process, or a server (`teachers/openai/scores.py`)."""

    def score(
        self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal, images: Sequence[tuple[str, ...]] = ()
    ) -> list[list[float]]:
        """For each (token ids, start): the log-probabilities of the tokens from `start` on.

        Args:
            images: the digests of each sequence's images; empty if none has any.
        """


class ListingScores(TeacherScores, Protocol):
    """One that also gives what it finds most probable."""

    def lists(
        self,
        sequences: Sequence[tuple[list[int], int]],
        k: int,
        stop: StopSignal,
        images: Sequence[tuple[str, ...]] = (),
    ) -> list[Listed]:
        """As `score`, with the `k` most probable tokens in the place of each."""


class LocalScores:
    """Scores by a model in this process, with one forward pass over the sequences.

    Args:
        vision: of a model that sees images.
    """

    def __init__(self, model: Any, pad: int, chunk_bytes: int | None, vision: Vision | None = None) -> None:
        self._model, self._pad, self._chunk_bytes = model.eval(), pad, chunk_bytes
        self._vision = vision

    @torch.no_grad()
    def score(
        self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal, images: Sequence[tuple[str, ...]] = ()
    ) -> list[list[float]]:
        found = scored(self._model, sequences, self._pad, self._chunk_bytes, images, self._vision)
        return [logprobs for logprobs, _ in found]

    @torch.no_grad()
    def lists(
        self,
        sequences: Sequence[tuple[list[int], int]],
        k: int,
        stop: StopSignal,
        images: Sequence[tuple[str, ...]] = (),
    ) -> list[Listed]:
        images = images or [()] * len(sequences)
        found: dict[int, Listed] = {}
        for batch in batches_by_length([len(ids) for ids, _ in sequences], MAX_BATCH_ROWS, BATCH_TOKENS, 0):
            chosen, shown = [sequences[index] for index in batch], [images[index] for index in batch]
            own_N, ids_NK, logprobs_NK = listed_logprobs(
                self._model, chosen, self._pad, k, self._chunk_bytes, vision=self._vision, images=shown
            )
            counts = [len(ids) - start for ids, start in chosen]
            parts = (own_N.split(counts), ids_NK.split(counts), logprobs_NK.split(counts))
            for index, own, ids, logprobs in zip(batch, *parts, strict=True):
                (targets, start) = sequences[index]
                found[index] = Listed.of(targets[start:], own.tolist(), ids.tolist(), logprobs.tolist())
        return [found[index] for index in range(len(sequences))]


def scored(
    model: Any,
    sequences: Sequence[tuple[list[int], int]],
    pad: int,
    chunk_bytes: int | None,
    images: Sequence[tuple[str, ...]] = (),
    vision: Vision | None = None,
) -> list[tuple[list[float], list[float]]]:
    """(log-probabilities, entropies) of each sequence's scored tokens.

    Args:
        images: the digests of each sequence's images; empty if none has any.
        vision: of a model that sees images.
    """
    images = images or [()] * len(sequences)
    found: dict[int, tuple[list[float], list[float]]] = {}
    for batch in batches_by_length([len(ids) for ids, _ in sequences], MAX_BATCH_ROWS, BATCH_TOKENS, 0):
        counts = [len(sequences[index][0]) - sequences[index][1] for index in batch]
        chosen, shown = [sequences[index] for index in batch], [images[index] for index in batch]
        both = completion_logprobs(model, chosen, pad, chunk_bytes, vision=vision, images=shown)
        logprobs, entropies = (part_N.split(counts) for part_N in both)
        for index, row, entropy in zip(batch, logprobs, entropies, strict=True):
            found[index] = (row.tolist(), entropy.tolist())
    return [found[index] for index in range(len(sequences))]
