"""On-policy distillation by generalised JSD: the student generates, and whole distributions are compared.

    loss = (1/N) Σ_t β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m),   m = β p_T + (1−β) p_S        (GKD, arXiv 2306.13649)

with forward KL at β = 0 and reverse KL at β = 1; both distributions at `temperature`, N the completion tokens of the
optimiser step, the student's own and the teacher's alike. β may differ between the two (`beta_answers`), a mixture of
both KLs may stand for it on own answers (`kl_mix`), and what is not set is chosen at the first rollouts (`fit.py`). The
first `kd_steps` steps are forward KL on the teacher's answers. The kernel (`kernels/linear_jsd.py`) reads the last
hidden states of both models, so nothing is computed for prompts or padding; the loop is the one of `trainer.py`.

Shapes: N tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.kernels.linear_jsd import Divergence, linear_generalized_jsd
from easydistill.kernels.logprobs import completion_states
from easydistill.methods.on_policy.config import OnPolicyConfig
from easydistill.methods.on_policy.fit import FORWARD_KL, WITHOUT_ROLLOUTS, Fit, answers_figures, fitting
from easydistill.methods.on_policy.own_teachers import by_name, groups, token_places
from easydistill.methods.on_policy.trainer import SampledTraining, run_loop
from easydistill.methods.sft.config import TrainingConfig
from easydistill.methods.shared.compat import check_head
from easydistill.methods.shared.ranks import from_all, sum_over_ranks
from easydistill.methods.shared.rollouts import PromptRow, Writer, Written, describe, scored
from easydistill.methods.shared.shown_images import sight_test
from easydistill.methods.shared.strategies.base import strategy
from easydistill.methods.shared.watch import TrainingOutcome
from easydistill.models.head import Head
from easydistill.models.student import Student

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

    Visions = tuple[Vision | None, Vision | Mapping[str, Vision | None] | None]


def train(
    student: Student,
    rows: Sequence[PromptRow],
    teacher: Any,
    config: TrainingConfig,
    on_policy: OnPolicyConfig,
    checkpoints: Path,
    reporter: Reporter,
    stop: StopSignal,
    writer: Writer | None = None,
    visions: Visions = (None, None),
) -> TrainingOutcome:
    """Train `student` in place (float32 on the CPU when it enters) towards `teacher`, which has its vocabulary, or each
    row towards the one that it is `taught_by`.

    Resumes from the last complete checkpoint, with the same final weights as an uninterrupted run.

    Args:
        teacher: a model, or models by name.
        writer: what generates the student's answers; by default the student, through transformers.
        visions: of a student and of a teacher that see images, or of teachers by name.

    Raises:
        DataError: there are no rows, or the loss is not finite.
        Interrupted: `stop` was requested; the state is in a checkpoint.
    """
    sights = by_name(visions[1])
    for name, model in by_name(teacher).items():
        check_head(model, sight_test(sights.get(name), [(row.prompt, row.images) for row in rows]))
    return run_loop(
        lambda: DivergenceTraining(student, rows, teacher, config, on_policy, checkpoints, reporter, writer, visions),
        student,
        rows,
        config,
        stop,
        visions[0],
    )


class _NoScores:
    """Rollouts are not scored before the update, which reads them with both models."""

    def score(
        self, sequences: Sequence[tuple[list[int], int]], stop: StopSignal, images: Sequence[tuple[str, ...]] = ()
    ) -> list[list[float]]:
        raise NotImplementedError


class DivergenceTraining(SampledTraining):
    """The loop, with the divergence of whole distributions as its loss."""

    def __init__(
        self,
        student: Student,
        rows: Sequence[PromptRow],
        teacher: Any,
        config: TrainingConfig,
        on_policy: OnPolicyConfig,
        checkpoints: Path,
        reporter: Reporter,
        writer: Writer | None = None,
        visions: Visions = (None, None),
    ) -> None:
        super().__init__(student, rows, _NoScores(), config, on_policy, checkpoints, reporter, writer, visions[0])
        self._sights = by_name(visions[1])
        self._teachers = {name: strategy().beside(model).eval() for name, model in by_name(teacher).items()}
        self._read: list[tuple[str, list[int], Tensor]] = []
        self._own = torch.zeros(3, dtype=torch.float64)
        if on_policy.fits_beta and on_policy.rollout_share == 0:
            self._choose(WITHOUT_ROLLOUTS)

    def _write(
        self, model: Any, asked: Sequence[Written], numbers: Sequence[int]
    ) -> tuple[list[Written], list[tuple[list[float], list[float]]]]:
        rollouts = self._generated(model, asked, numbers, self._on_policy.rollouts_at)
        own: list[tuple[list[float], list[float]]] = []
        if self._undecided and rollouts:
            model.eval()
            written, images = [(item.ids, len(item.prompt)) for item in rollouts], [item.images for item in rollouts]
            with self._phases.during("scores"), torch.no_grad(), self._autocast(cached=True):
                own = scored(model, written, self._pad, self._config.loss_chunk_bytes, images, self._vision)
        return rollouts, own

    @property
    def _undecided(self) -> bool:
        return self._on_policy.fits_beta and self._fit is None

    def _score(
        self, rollouts: list[Written], own: Sequence[tuple[list[float], list[float]]], stop: StopSignal
    ) -> tuple[list[Written], list[float]]:
        if self._undecided:
            self._decide(rollouts, [value for _, entropies in own for value in entropies])
        return rollouts, []

    def _decide(self, rollouts: list[Written], entropies: list[float]) -> None:
        """Choose β by the first rollouts; all ranks do, by those of all."""
        everyone = [item for part in from_all(rollouts) for item in part]
        values = [value for part in from_all(entropies) for value in part]
        if not everyone:
            return
        longest = self._schedule.longest(self._step)
        # Answers that nothing is learned of change nothing.
        learned = self._on_policy.learns_answers
        answers = [row.label[1] for row in self._rows if learned and row.label is not None]
        usual = answers_figures(answers, self._student.eos_ids, longest)
        self._choose(fitting({**describe(everyone), "entropy": fmean(values)}, usual))

    def _choose(self, fit: Fit) -> None:
        self._fit = fit
        self._reporter.say(f"  on_policy.beta = {fit.beta}, {fit.told}")

    def _divergence(self, rolled: bool) -> Divergence:
        """What is minimised in this step, on the student's own answers or on the teacher's."""
        chosen = self._on_policy
        if self._schedule.is_start(self._step):
            return Divergence(FORWARD_KL)
        if not rolled and chosen.beta_answers is not None:
            return Divergence(chosen.beta_answers)
        if chosen.kl_mix is not None:
            return Divergence(forward_share=chosen.kl_mix)
        # Before the first rollouts there are only the teacher's answers.
        fitted = FORWARD_KL if self._fit is None else self._fit.beta
        return Divergence(fitted if chosen.beta is None else chosen.beta)

    def _before(self, part: list[Written]) -> None:
        """Have each teacher read its sequences of a micro-batch."""
        with self._phases.during("teacher"), torch.no_grad(), self._autocast(cached=True):
            self._read = []
            for name, numbers in groups(part).items():
                asked = [(part[number].ids, len(part[number].prompt)) for number in numbers]
                images, vision = [part[number].images for number in numbers], self._sights.get(name)
                read_ND, _ = completion_states(
                    self._teachers[name], asked, self._pad, flat=True, vision=vision, images=images
                )
                self._read.append((name, numbers, read_ND))

    def _loss(self, part: list[Written]) -> Tensor:
        asked, images = self._shown(part)
        with self._autocast():
            hidden_ND, _ = completion_states(
                self._student.model, asked, self._pad, flat=self._flat, vision=self._vision, images=images
            )
            losses = [self._from_one(part, hidden_ND, *read) for read in self._read]
        self._read = []
        return functools.reduce(torch.add, losses)

    def _from_one(
        self, part: list[Written], hidden_ND: Tensor, name: str, numbers: list[int], read_ND: Tensor
    ) -> Tensor:
        """The summed loss of one teacher's sequences of a micro-batch.

        Args:
            hidden_ND: the student's, of the tokens of all sequences.
            read_ND: the teacher's, of those of its own.
        """
        if len(numbers) < len(part):
            places_N = torch.tensor(token_places(part, numbers), dtype=torch.long, device=hidden_ND.device)
            hidden_ND = hidden_ND.index_select(0, places_N)
        items = [part[number] for number in numbers]
        found = linear_generalized_jsd(
            hidden_ND,
            Head.of(self._student.model),
            read_ND,
            Head.of(self._teachers[name]),
            [(len(item.completion), self._divergence(item.rolled)) for item in items],
            temperature=self._on_policy.temperature,
            chunk_bytes=self._config.loss_chunk_bytes,
        )
        rolled_N = torch.tensor([item.rolled for item in items for _ in item.completion], device=hidden_ND.device)
        of_own = (found.reverse_kl_N[rolled_N].sum(), found.entropy_N[rolled_N].sum(), rolled_N.sum())
        self._own += torch.stack([value.double() for value in of_own]).cpu()
        return found.total

    def _figures(self) -> dict[str, float]:
        """Reverse KL and the student's entropy, in nats a token of the student's own answers, at `temperature`."""
        reverse_kl, entropy, count = sum_over_ranks(self._own).tolist()
        self._own = torch.zeros_like(self._own)
        return {"reverse_kl": reverse_kl / count, "entropy": entropy / count} if count else {}
