"""On-policy distillation by reverse KL over the teacher's k most probable tokens, and a bucket of the rest.

    loss = (1/N) Σ_t Σ_{v ∈ K} p_S(v) (log p_S(v) − log p_T(v)) + r_S (log r_S − log r_T)

over the student's own tokens, with K the teacher's k most probable tokens and the one that was drawn, and r the
probability of all others; −(1/N) Σ_t log p_S(y_t) over tokens of the teacher's answers. Where one outcome stands for
many the divergence is at most the whole one, and the two are equal once K is the vocabulary. The sum over K is exact,
where `sampled_reverse_kl` has one drawn token for it: no variance is added to that of the text. A vLLM server gives
what it takes (`prompt_logprobs` = k).

The loop, and what is left out, are those of `trainer.py`; the kernel is that of stored signals.

Shapes: N tokens, M listed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easydistill.contracts.loss import expected_ratio
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.kernels.linear_distillation import Objective, Targets, linear_distillation
from easydistill.kernels.logprobs import completion_states
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.own_teachers import by_name, each_by_its_own
from easydistill.methods.on_policy.trainer import SampledTraining, run_loop, sequences_of
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.rollouts import ListingScores, PromptRow, Writer, Written
from easydistill.methods.shared.watch import TrainingOutcome
from easydistill.models.head import Head
from easydistill.models.student import Student
from easydistill.teachers.listed import Listed

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

LEAST_REST = 1e-6
"""Least probability of the tokens that are not listed, if there are any. Servers round; the kernel has the same floor
on the student's side."""


def train(
    student: Student,
    rows: Sequence[PromptRow],
    scores: ListingScores | Mapping[str, ListingScores],
    config: TrainingConfig,
    on_policy: OnPolicyConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    writer: Writer | None = None,
    vision: Vision | None = None,
) -> TrainingOutcome:
    """Train `student` in place, as `trainer.train` does, with the divergence over listed tokens as its loss."""
    return run_loop(
        lambda: TopKTraining(student, rows, scores, config, on_policy, checkpoints, reporter, writer, vision),
        student,
        rows,
        config,
        stop,
        vision,
    )


class TopKTraining(SampledTraining):
    """The loop, with the tokens that the teacher lists."""

    def __init__(
        self,
        student: Student,
        rows: Sequence[PromptRow],
        scores: ListingScores | Mapping[str, ListingScores],
        config: TrainingConfig,
        on_policy: OnPolicyConfig,
        checkpoints: Path,
        reporter: Reporter,
        writer: Writer | None = None,
        vision: Vision | None = None,
    ) -> None:
        super().__init__(student, rows, scores, config, on_policy, checkpoints, reporter, writer, vision)
        self._listing: Mapping[str, ListingScores] = by_name(scores)
        self._lists: list[Listed] = []

    def _given(self, rollouts: Sequence[Written], stop: StopSignal) -> list[list[float]]:
        def ask(name: str, part: list[Written]) -> list[Listed]:
            asked, images = sequences_of(part)
            return self._listing[name].lists(asked, self._on_policy.top_k, stop, *images)

        self._lists = each_by_its_own(rollouts, ask)
        return [listed.own for listed in self._lists]

    def _score(
        self, rollouts: list[Written], own: Sequence[tuple[list[float], list[float]]], stop: StopSignal
    ) -> tuple[list[Written], list[float]]:
        self._lists = []
        found, entropies = super()._score(rollouts, own, stop)
        listed = [
            replace(item, listed=others.ids, listed_logprobs=others.logprobs)
            for item, others in zip(found, self._lists, strict=True)
        ]
        return listed, entropies

    def _loss(self, part: list[Written]) -> Tensor:
        asked, images = self._shown(part)
        with self._autocast():
            hidden_ND, target_N = completion_states(
                self._student.model, asked, self._pad, flat=self._flat, vision=self._vision, images=images
            )
            head = Head.of(self._student.model)
            targets = targets_of(part, self._on_policy.top_k, len(head.weight_VD), hidden_ND.device)
            objective = Objective(divergence=_reverse_kl, kd_ratio=0.5)
            # A row has either a label or a list, and each half of the loss is of those that have it.
            return (
                2
                * linear_distillation(
                    hidden_ND, head, target_N, targets, objective, self._config.loss_chunk_bytes
                ).total
            )


def _reverse_kl(teacher_NM: Tensor, student_NM: Tensor, has_bucket: bool, rows: slice) -> Tensor:
    return expected_ratio(student_NM, teacher_NM)


def targets_of(part: Sequence[Written], top_k: int, vocabulary: int, on: torch.device) -> Targets:
    """What the kernel reads of a micro-batch: the student's tokens with lists, the teacher's with labels.

    Column 0 is the token that was drawn; it may be one of the others, whose place is unused then.
    """
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    width = min(top_k, vocabulary)
    for item in part:
        if item.rolled:
            assert item.teacher is not None and item.listed is not None and item.listed_logprobs is not None
            each = zip(item.completion, item.teacher, item.listed, item.listed_logprobs, strict=True)
            for token, logprob, others, theirs in each:
                # A server's model may have more rows in its head, all but impossible; they are of the rest then.
                real = [pair for pair in zip(others, theirs, strict=True) if pair[0] < vocabulary]
                unused = width - len(real)
                ids.append([token, *(other for other, _ in real), *[token] * unused])
                logprobs.append([logprob, *(theirs for _, theirs in real), *[-torch.inf] * unused])
        else:
            ids += [[token] * (width + 1) for token in item.completion]
            logprobs += [[0.0, *[-torch.inf] * width] for _ in item.completion]
    rolled_N = torch.tensor([item.rolled for item in part for _ in item.completion], dtype=torch.bool, device=on)
    learned_N = torch.tensor([value for item in part for value in item.learned], dtype=torch.bool, device=on)
    ids_NM = torch.tensor(ids, device=on).view(-1, width + 1)
    exact_NM = torch.tensor(logprobs, dtype=torch.float64).view(-1, width + 1)
    # What is left out of the sum must not be NaN in it.
    exact_NM[exact_NM[:, 0].isnan()] = torch.tensor([0.0, *[-torch.inf] * width], dtype=torch.float64)
    rest_N = (1 - exact_NM.exp().sum(-1)).clamp_min(LEAST_REST).log()
    if top_k >= vocabulary:
        rest_N.fill_(-torch.inf)
    return Targets(
        ids_NM=ids_NM,
        logweights_NM=exact_NM.float().to(on),
        log_rest_N=rest_N.float().to(on),
        offset_N=torch.zeros(len(ids_NM), device=on),
        present_N=rolled_N & learned_N,
        labelled_N=~rolled_N,
    )
