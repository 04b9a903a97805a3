"""A student compared with its teacher, token by token: shared mass, KL by position, the largest disagreements.

In: slices of answer tokens with the distributions of both models. Out: `Disagreement.figures()`. The state in between
does not grow with the number of rows: sums, two numbers per vocabulary entry, and the few tokens with the largest
KL(p_T ‖ p_S).

Shapes: N tokens, V shared vocabulary, K = `TOP` likeliest tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from easydistill.contracts.metric import TokenRows
from easydistill.evaluation.ranking import Highest, top
from easydistill.models.head import rows_per_chunk

TOP = 10
"""Overlap and mass are computed over this many most probable tokens."""
SHOWN = 5
"""Most probable tokens of each model that are kept with a disagreement."""
LARGEST = 40
LARGEST_PER_ROW = 3
TOKENS = 20
CACHED_BYTES = 2 << 20
"""Piece that stays in a CPU's cache over several passes; passes over a whole slice take three times as long."""
BUCKETS = 40

Ranked = tuple[tuple[int, float], ...]
"""Token ids with their probabilities, most probable first."""


@dataclass(frozen=True)
class LargeDisagreement:
    """A token of an answer at which the two distributions differ widely."""

    row: int
    column: int
    position: int
    token: int
    kl: float
    teacher_probability: float
    """Of the answer's token."""
    student_probability: float
    teacher: Ranked
    student: Ranked


@dataclass(frozen=True)
class Bucket:
    """Answer tokens `first` to `last`, counted from 1 in each answer."""

    first: int
    last: int
    tokens: int
    kl: float
    """Mean, in nats."""


@dataclass(frozen=True)
class CostlyToken:
    """A vocabulary entry, over all its occurrences in the answers."""

    token: int
    count: int
    kl: float
    """Mean, in nats; tokens are ranked by the sum."""


@dataclass(frozen=True)
class Shares:
    """Means over the tokens. Masses are probabilities, entropies are in nats."""

    kl: float
    teacher_entropy: float
    student_entropy: float
    overlap: float
    """Share of the teacher's `TOP` most probable tokens that are among the student's."""
    teacher_mass_on_teacher_top: float
    student_mass_on_teacher_top: float
    teacher_mass_on_student_top: float


@dataclass(frozen=True)
class Figures:
    """The result of one pass."""

    tokens: int
    not_finite: int
    """Tokens whose KL is not finite; all other figures leave them out."""
    shares: Shares
    positions: tuple[Bucket, ...]
    largest: tuple[LargeDisagreement, ...]
    costly: tuple[CostlyToken, ...]


class Disagreement:
    """Observer of a pass over answer tokens that compares student and teacher.

    Args:
        vocabulary: how many token ids the two models share.
    """

    def __init__(self, vocabulary: int) -> None:
        self._tokens = 0
        self._not_finite = 0
        self._sums = torch.zeros(len(fields(Shares)), dtype=torch.float64)
        self._edges = 2 ** torch.arange(BUCKETS - 1)
        self._by_position = _Means(BUCKETS)
        self._by_token = _Means(vocabulary)
        self._largest: Highest[LargeDisagreement] = Highest(LARGEST, LARGEST_PER_ROW)

    def update(self, rows: TokenRows) -> None:
        for part in _parts(rows):
            compared = _Compared.of(part)
            # float64 on the CPU: Apple's accelerator has none.
            shares_SN = compared.shares_SN.cpu().double()
            kl_N = shares_SN[0]
            finite_N = kl_N.isfinite()
            self._not_finite += int((~finite_N).sum())
            self._tokens += int(finite_N.sum())
            self._sums += shares_SN[:, finite_N].sum(1)
            # Buckets include their upper edge: 1, 2, 3-4, 5-8 …
            self._by_position.add(torch.bucketize(part.position_N.cpu(), self._edges)[finite_N], kl_N[finite_N])
            self._by_token.add(part.target_N.cpu()[finite_N], kl_N[finite_N])
            self._offer(part, compared, kl_N.masked_fill(~finite_N, 0.0))

    def _offer(self, part: TokenRows, compared: _Compared, kl_N: Tensor) -> None:
        """Offer the tokens with a KL above zero as the largest disagreements, the largest first."""
        near_N = ((kl_N > 0) & (kl_N >= self._largest.floor)).nonzero()[:, 0]
        for n in near_N[kl_N[near_N].argsort(descending=True)].tolist():
            value, row, column = float(kl_N[n]), int(part.row_N[n]), int(part.column_N[n])
            if value < self._largest.floor:
                break
            self._largest.offer(value, row, column, lambda n=n: compared.entry(part, n))  # type: ignore[misc]

    def figures(self) -> Figures | None:
        """The figures so far; None if no token could be compared."""
        if not self._tokens:
            return None
        return Figures(
            tokens=self._tokens,
            not_finite=self._not_finite,
            shares=Shares(*(self._sums / self._tokens).tolist()),
            positions=tuple(
                Bucket(1 if at == 0 else 2 ** (at - 1) + 1, 2**at, count, total / count)
                for at, count, total in self._by_position.seen()
            ),
            largest=tuple(self._largest.entries),
            costly=tuple(
                CostlyToken(token, count, total / count)
                for token, count, total in sorted(self._by_token.seen(), key=lambda item: (-item[2], item[0]))[:TOKENS]
                if total > 0
            ),
        )


class _Means:
    """Count and float64 sum of each of `size` kinds."""

    def __init__(self, size: int) -> None:
        self._counts = torch.zeros(size, dtype=torch.int64)
        self._sums = torch.zeros(size, dtype=torch.float64)

    def add(self, kind_N: Tensor, value_N: Tensor) -> None:
        self._counts.index_add_(0, kind_N, torch.ones_like(kind_N))
        self._sums.index_add_(0, kind_N, value_N)

    def seen(self) -> list[tuple[int, int, float]]:
        """(kind, count, sum) of the kinds that occurred."""
        kinds = self._counts.nonzero()[:, 0]
        return list(zip(kinds.tolist(), self._counts[kinds].tolist(), self._sums[kinds].tolist(), strict=True))


def _parts(rows: TokenRows) -> Iterator[TokenRows]:
    """On a CPU, pieces that fit its cache; elsewhere the slice as it is."""
    assert rows.teacher_logprobs_NV is not None
    on_cpu = rows.target_N.device.type == "cpu"
    step = rows_per_chunk(rows.teacher_logprobs_NV.shape[1], CACHED_BYTES) if on_cpu else len(rows.target_N)
    for start in range(0, len(rows.target_N), step):
        yield rows.part(slice(start, start + step))


@dataclass(frozen=True)
class _Compared:
    """The comparison of two distributions for each of N tokens."""

    shares_SN: Tensor
    """One row per field of `Shares`, in their order."""
    teacher_top_NK: tuple[Tensor, Tensor]
    """Log-probabilities and token ids, in descending order."""
    student_top_NK: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, rows: TokenRows) -> _Compared:
        teacher_NV, student_NV = rows.teacher_logprobs_NV, rows.shared_student_logprobs_NV
        assert teacher_NV is not None
        assert student_NV is not None
        teacher_top, student_top = top(teacher_NV, TOP), top(student_NV, TOP)
        (of_teacher_NK, teacher_NK), (_, student_NK) = teacher_top, student_top
        shared_NK = (teacher_NK[:, :, None] == student_NK[:, None, :]).any(-1)
        shares = (
            *_divergence_and_entropies(teacher_NV, student_NV),
            shared_NK.float().mean(1),
            of_teacher_NK.exp().sum(1),
            student_NV.gather(1, teacher_NK).exp().sum(1),
            teacher_NV.gather(1, student_NK).exp().sum(1),
        )
        return cls(torch.stack(shares), teacher_top, student_top)

    def entry(self, part: TokenRows, n: int) -> LargeDisagreement:
        """Token n of the part, as a disagreement."""
        assert part.teacher_logprobs_NV is not None
        assert part.shared_student_logprobs_NV is not None
        token = int(part.target_N[n])
        return LargeDisagreement(
            row=int(part.row_N[n]),
            column=int(part.column_N[n]),
            position=int(part.position_N[n]),
            token=token,
            kl=float(self.shares_SN[0, n]),
            teacher_probability=math.exp(float(part.teacher_logprobs_NV[n, token])),
            student_probability=math.exp(float(part.shared_student_logprobs_NV[n, token])),
            teacher=_ranked(self.teacher_top_NK, n),
            student=_ranked(self.student_top_NK, n),
        )


def _ranked(top_NK: tuple[Tensor, Tensor], n: int) -> Ranked:
    logprobs, ids = (values_NK[n, :SHOWN].tolist() for values_NK in top_NK)
    return tuple((token, math.exp(logprob)) for token, logprob in zip(ids, logprobs, strict=True))


def _divergence_and_entropies(teacher_NV: Tensor, student_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p_T ‖ p_S) = Σ p_T (log p_T − log p_S), H(p_T) and H(p_S) = −Σ p log p, of each row.

    The divergence is not computed as cross-entropy less entropy: where it is small, only rounding errors would be left.
    """
    teacher_probabilities_NV = teacher_NV.exp()
    work_NV = teacher_NV - student_NV
    # Rounding can leave a divergence slightly below zero.
    kl_N = work_NV.mul_(teacher_probabilities_NV).sum(1).clamp(min=0.0)
    teacher_entropy_N = -torch.mul(teacher_probabilities_NV, teacher_NV, out=work_NV).sum(1)
    student_probabilities_NV = torch.exp(student_NV, out=teacher_probabilities_NV)
    student_entropy_N = -torch.mul(student_probabilities_NV, student_NV, out=work_NV).sum(1)
    return kl_N, teacher_entropy_N, student_entropy_N
