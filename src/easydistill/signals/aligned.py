"""Signals of a teacher with another tokenizer, over the student's ids.

What enters: chats, and their rows as the student reads them. The teacher reads each chat in its own template and
tokens; where a token of the student and one of the teacher begin at the same byte of an answer (`alignment.py`), the
teacher's distribution is mapped to the student's ids. What leaves: a signal for these aligned tokens only; the others
are not `present`, and are learned from their labels alone.

- A token of the teacher that the student does not have cannot be mapped: its mass is part of the rest. It can be
  neither listed nor drawn, so only `top_k` and `top_p` signals are possible.
- A loss that compares by rank (`uld`) needs no ids. Its signals are the teacher's own largest probabilities, unmapped,
  and the ids stored with them are ranks: no other loss may read such a store.
- The target's log-probability is that of the student's token after the mapping: −inf if the teacher lacks the token.

Shapes: N aligned tokens, B rows, W their width, D hidden width, S the student's vocabulary, T the teacher's, K entries
of the head; V is S or T.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from easydistill.data.chat import ChatRenderer, Expander
from easydistill.data.messages import HasChat, Message
from easydistill.data.tokens import TokenIds
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import DataError
from easydistill.models.compatibility import (
    PROBE,
    Difference,
    Side,
    begins_twice,
    fatal,
    output_rows,
    shared_ids,
)
from easydistill.models.head import Head, body_of
from easydistill.models.loading import choose_dtype, device
from easydistill.models.prefix_sum import prefix_sum
from easydistill.models.spread import Spread, head_of, input_device, load_placed
from easydistill.signals.alignment import Ids, align, shared_vocabulary, token_bytes
from easydistill.signals.codec import Codec
from easydistill.signals.columns import ColumnMap
from easydistill.signals.config import SignalsConfig
from easydistill.signals.extract import SignalShape, TeacherRows
from easydistill.signals.score import Found, RowToScore, vision_of_teacher
from easydistill.signals.signal import TeacherSignal
from easydistill.signals.store import ScoredSample
from easydistill.signals.transfer import DeviceSignal, start_copy

if TYPE_CHECKING:
    from easydistill.models.multimodal.vision import ImageFiles

LEAST_SHARED = 0.01
"""With a smaller share of the teacher's tokens in the student's vocabulary, almost nothing could be learned."""


# --- rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlignedRow(RowToScore):
    """A row of the student, and the same chat as the teacher reads it."""

    teacher_ids: Sequence[int]
    """The teacher's tokens, up to the last one that is needed."""
    pairs: Ids
    """[N, 2]: indices (student's token, teacher's token) that begin at the same byte; see `alignment.align`."""
    refused: str | None = None
    """Why the teacher cannot read the chat: its template refuses it, or an image lies beyond its last position."""

    @property
    def length(self) -> int:
        # Planning needs a positive length; rows without a pair cost nothing to score.
        return max(1, len(self.teacher_ids))

    @property
    def present(self) -> Any:
        """For each learned token, whether it is aligned, bool."""
        return np.isin(np.flatnonzero(np.asarray(self.learned)), self.pairs[:, 0])


class Aligner:
    """Renders chats for a teacher, and finds where its tokens begin at the same byte as the student's.

    Args:
        student, teacher: a side's template is its own unless `Side.template` replaces it.
        context: the teacher's longest row; tokens beyond it have no signal.
        images: what student and teacher read of images, if they see any.

    Raises:
        DataError: a tokenizer is not supported, a template is missing or fails, or the student's never ends a turn.
    """

    def __init__(
        self,
        student: Side,
        teacher: Side,
        context: int | None = None,
        date: datetime.date | None = None,
        images: tuple[Expander | None, Expander | None] = (None, None),
    ) -> None:
        self.student, self.teacher = student.renderer(date, images[0]), teacher.renderer(date, images[1])
        self._context = context
        self._student_bytes = token_bytes(student.tokenizer)
        self._teacher_bytes = token_bytes(teacher.tokenizer)
        # A generation config may name end tokens that the tokenizer does not have.
        self._teacher_ends = {index for index in self.teacher.eos_ids if index < len(self._teacher_bytes)}
        self.teacher.render(PROBE)

    @cached_property
    def to_student(self) -> Ids:
        """The student's id for each of the teacher's tokens, int64 [T]; −1 for none."""
        probe = self.student.render(PROBE)
        end = probe.ids[max(t for t, on in enumerate(probe.mask) if on)]
        if end not in self.student.eos_ids:
            raise DataError(
                "the student's answers do not end with an end token\n    → take a tokenizer that has one (eos_token)"
            )
        return shared_vocabulary(
            self.student.tokenizer, self.teacher.tokenizer, self.student.eos_ids, self._teacher_ends, end
        )

    def row(self, row: RowToScore, chat: HasChat | Sequence[Message], *, truncated: bool) -> AlignedRow:
        """A row with the teacher's rendering of its chat; `truncated` says whether the row was cut off.

        Complete renderings are aligned, and pairs beyond the cut are dropped. So answers of a truncated chat are never
        confused, as could happen if the teacher's template shows only the last one.
        """
        try:
            theirs = self.teacher.render(chat)
            last_image = self._last_image(theirs.ids_T)
        except DataError as error:
            return _unaligned(row, str(error))
        if self._context is not None and last_image >= self._context:
            return _unaligned(row, f"an image ends at token {last_image + 1}, beyond its {self._context} positions")
        ids, mask = [*map(int, row.ids)], [*map(bool, row.learned)]
        if truncated:
            whole = self.student.render(chat)
            ids, mask = whole.ids, whole.mask
        pairs = align(
            ids,
            mask,
            theirs.ids,
            theirs.mask,
            self._student_bytes,
            self._teacher_bytes,
            self.student.eos_ids,
            self._teacher_ends,
            truncated=False,
        )
        kept = pairs[:, 0] < len(row.ids)
        if self._context is not None:
            kept &= pairs[:, 1] < self._context
        pairs = pairs[kept]
        # Images may follow the last token that is needed, and are shown with their tokens or not at all.
        needed = max(int(pairs[-1, 1]), last_image + 1) if len(pairs) else 0
        return AlignedRow(row.id, row.ids, row.learned, theirs.ids[:needed], pairs, images=row.images)

    def _last_image(self, ids_T: TokenIds) -> int:
        """Where the last token of an image stands; −1 if there is none."""
        if self.teacher.images is None:
            return -1
        shown = list(self.teacher.images.processor.image_token_ids)
        return max(np.flatnonzero(np.isin(np.asarray(ids_T), shown)).tolist(), default=-1)


def _unaligned(row: RowToScore, refused: str) -> AlignedRow:
    return AlignedRow(row.id, row.ids, row.learned, (), np.zeros((0, 2), np.int64), refused, images=row.images)


def coverage(reference: str, rows: Sequence[AlignedRow]) -> dict[str, Any]:
    """How many of the rows' tokens have a signal, for the stage's figures.

    Raises:
        DataError: none has.
    """
    refused = [row.refused for row in rows if row.refused is not None]
    if refused:
        LOGGER.warning(
            "%s cannot read %d of %d chats, which are learned from their labels alone: %s",
            *(reference, len(refused), len(rows), refused[0]),
        )
    tokens, learned = sum(len(row.pairs) for row in rows), sum(row.learned_tokens for row in rows)
    if rows and not tokens:
        raise DataError(
            f"{reference}: not one token of the rows begins where one of the teacher's does"
            f"{f' ({refused[0]})' if refused else ''}\n"
            "    → the answers are not the same text in both templates: set dataset.template"
        )
    return {
        "aligned_share": round(tokens / max(1, learned), 6),
        "rows_without_signal": sum(not len(row.pairs) for row in rows),
        "rows_refused_by_template": len(refused),
    }


# --- the comparison before anything starts ------------------------------------------------------------------


def compare_aligned(student: Side, teacher: Side, *, by_rank: bool) -> list[Difference]:
    """What prevents aligning teacher and student, and what the user should know."""
    try:
        aligner = Aligner(student, teacher)
        to_student = aligner.to_student
    except DataError as error:
        problem, _, hint = str(error).partition("\n    → ")
        return [Difference(problem, hint or "take another teacher", fatal=True)]
    found = [*_faults(student, aligner.student), *_faults(teacher, aligner.teacher)]
    if shared_ids(student.tokenizer, teacher.tokenizer) is not None:
        advice = 'set distillation.align to "none": every token then has a signal, and the teacher is scored faster'
        found.append(Difference("teacher and student number their tokens alike", advice))
    share = float((to_student >= 0).mean())
    shown = f"{int((to_student >= 0).sum())} of the teacher's {len(to_student)} tokens are also the student's"
    if share < LEAST_SHARED and not by_rank:
        hint = 'take a teacher with a tokenizer of the same languages, or set distillation_type to "uld"'
        found.append(Difference(f"only {shown}", hint, fatal=True))
    else:
        found.append(Difference(f"{shown} ({share:.0%})", "the mass of the others goes to the rest"))
    return found


def _faults(side: Side, renderer: ChatRenderer) -> list[Difference]:
    return fatal(output_rows(side)) + begins_twice(side, renderer)


# --- scoring ------------------------------------------------------------------------------------------------


def codec_of(config: SignalsConfig, vocabulary: int) -> Codec:
    """The encoding of aligned signals, whose rows may differ in their number of entries."""
    return replace(SignalShape.of(config, vocabulary).codec(vocabulary), head=-1)


class AlignedScorer:
    """Scores `AlignedRow`s with a model loaded into this process.

    Args:
        reference: the teacher.
        to_student: from `Aligner.to_student`.
        vocabulary: S; the student's token ids are below this.
        temperature: of the kept distribution.
        by_rank: keep the teacher's own largest probabilities, for a loss that compares by rank.
        spread: how the teacher lies on several devices.
        images: gives the file of an image by its digest, for rows with images.
    """

    def __init__(
        self,
        reference: str,
        to_student: Ids,
        config: SignalsConfig,
        vocabulary: int,
        temperature: float,
        *,
        by_rank: bool,
        trust_remote_code: bool = False,
        spread: Spread | None = None,
        images: ImageFiles | None = None,
    ) -> None:
        assert not config.drawn, "the job's validator refuses draws"
        dtype = choose_dtype(config.dtype, device())
        self._model: Any = load_placed(reference, dtype, spread, trust_remote_code=trust_remote_code)
        self._vision = vision_of_teacher(reference, self._model, images, trust_remote_code)
        with head_of(self._model) as head:
            # Where the output layer is, signals are made.
            self._device = head.weight_VD.device
        self._to_student_T = torch.from_numpy(to_student).to(self._device)
        self._columns = ColumnMap.of(to_student, len(to_student), vocabulary, self._device)
        self._shape = SignalShape.of(config, vocabulary)
        self._temperature = temperature
        self._by_rank = by_rank

    @property
    def ahead(self) -> int:
        return 2 if self._device.type == "cuda" else 0

    def score(self, rows: Sequence[AlignedRow]) -> list[ScoredSample]:
        return self.start(rows)()

    def start(self, rows: Sequence[AlignedRow]) -> Found:
        with torch.inference_mode(), head_of(self._model) as head:
            signal_of_batch = start_copy(self._signal([row for row in rows if len(row.pairs)], head))
        return lambda: _samples(rows, signal_of_batch())

    def _signal(self, rows: Sequence[AlignedRow], head: Head) -> DeviceSignal:
        hidden_ND = self._hidden(rows) if rows else head.weight_VD.new_zeros((0, head.weight_VD.shape[1]))
        targets = [row.ids[int(t)] for row in rows for t in row.pairs[:, 0]]
        target_N = _on(self._device, np.array(targets, np.int64))
        teacher = TeacherRows([hidden_ND.to(self._device)], [head], [0.0])
        return DeviceSignal.concatenate(
            [
                self._signal_of_logits(logits_NT, target_N[part])
                for part, logits_NT in teacher.slices(len(self._to_student_T))
            ]
        )

    def _hidden(self, rows: Sequence[AlignedRow]) -> Tensor:
        """The teacher's hidden states [N, D] that predict the aligned tokens, row by row."""
        width = max(len(row.teacher_ids) for row in rows)
        # Padding is on the right, where causal attention does not look.
        ids_BW = np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            ids_BW[at, : len(row.teacher_ids)] = row.teacher_ids
        place_N = np.concatenate([at * width + row.pairs[:, 1] - 1 for at, row in enumerate(rows)])
        shown_BW = _on(input_device(self._model), ids_BW)
        seen = {} if self._vision is None else self._vision.inputs(shown_BW, [(r.teacher_ids, r.images) for r in rows])
        hidden_BWD: Tensor = body_of(self._model)(input_ids=shown_BW, use_cache=False, **seen).last_hidden_state
        return hidden_BWD.flatten(0, 1).index_select(0, _on(hidden_BWD.device, place_N))

    def _signal_of_logits(self, logits_NT: Tensor, target_N: Tensor) -> DeviceSignal:
        logprobs_NT = _normalised(logits_NT)
        is_target_NT = self._to_student_T == target_N[:, None]
        target_logprob_N = logprobs_NT.masked_fill(~is_target_NT, -torch.inf).logsumexp(-1)
        if self._temperature != 1.0:
            logprobs_NT = _normalised(logits_NT / self._temperature)
        if self._by_rank:
            unmapped_N = torch.full_like(target_logprob_N, -torch.inf)
            _, head_NK, rest_N = listed(logprobs_NT, unmapped_N, self._shape)
            ids_NK = torch.arange(head_NK.shape[1], device=head_NK.device).expand_as(head_NK)
        else:
            ids_NK, head_NK, rest_N = listed(*self._columns.merge(logprobs_NT), self._shape)
        none_ND = ids_NK[:, :0]
        return DeviceSignal.of(
            head_ids_NK=ids_NK.masked_fill(head_NK.isneginf(), 0),
            head_logprobs_NK=head_NK,
            log_rest_N=rest_N,
            draw_ids_ND=none_ND,
            draw_counts_ND=none_ND,
            draws=0,
            fixed=False,
            target_logprob_N=target_logprob_N,
            entropy_N=torch.full_like(target_logprob_N, torch.nan),
        )

    def close(self) -> None:
        self._model = None


def _on(where: torch.device, array: Any) -> Tensor:
    """An array on a device; on a GPU the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else tensor.to(where)


def _samples(rows: Sequence[AlignedRow], signal: TeacherSignal) -> list[ScoredSample]:
    scored: list[ScoredSample] = []
    at = 0
    for row in rows:
        stop = at + len(row.pairs)
        scored.append(ScoredSample(row.id, row.ids, row.learned, signal.rows(at, stop), row.present, row.images))
        at = stop
    return scored


def _normalised(logits_NV: Tensor) -> Tensor:
    # `log_softmax` adds a row's exponentials one by one, with an error of 1e-5; `logsumexp` adds pairwise.
    return logits_NV - logits_NV.logsumexp(-1, keepdim=True)


def listed(logprobs_NV: Tensor, log_unmapped_N: Tensor, shape: SignalShape) -> tuple[Tensor, Tensor, Tensor]:
    """The head of a distribution with unmapped mass: (ids [N, K], log-probabilities, log of the rest [N]).

    Args:
        logprobs_NV: sums to one together with `log_unmapped_N`.
        log_unmapped_N: log of the mass on no token; it is part of the rest.
        shape: number of entries, most probable first, and the mass at which the head ends. Unused places are −inf.
    """
    head_NK, ids_NK = logprobs_NV.topk(min(shape.head, logprobs_NV.shape[1]))
    if shape.top_p < 1.0:
        probs_NK = head_NK.exp()
        head_NK = head_NK.masked_fill(prefix_sum(probs_NK) - probs_NK >= shape.top_p, -torch.inf)
    left_NK = logprobs_NV.gather(1, ids_NK).masked_fill(~head_NK.isneginf(), -torch.inf)
    others_N = logprobs_NV.scatter(1, ids_NK, left_NK).logsumexp(-1)
    return ids_NK, head_NK, others_N.logaddexp(log_unmapped_N).clamp_max(0.0)
