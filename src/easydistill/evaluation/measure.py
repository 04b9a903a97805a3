"""Measure a model on held-out rows: one pass over the teacher's answers, and answers that it generates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easydistill.contracts.metric import MetricConfig, TokenObserver, TokenRows, make_metric
from easydistill.data.batches import batches_by_length, padded
from easydistill.data.tokens import Mask, TokenIds
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Task
from easydistill.evaluation.metrics import METRICS
from easydistill.models.decoding.graphs import DecodeGraphs
from easydistill.models.flat_rows import FlatRows, flat_rows
from easydistill.models.head import rows_per_chunk
from easydistill.models.padding import reads_padding
from easydistill.models.sampling import SeededSampler, generate_batch
from easydistill.models.spread import head_of, input_device

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

SLICE_BYTES = 64 << 20


class Measured:
    """A model split into body and head, as measurement needs it.

    Args:
        vision: of a model that sees images.
    """

    def __init__(self, model: Any, body: Any, vision: Vision | None = None) -> None:
        self.model = model
        self.body = body
        self.vision = vision

    def hidden(
        self, ids_BT: Tensor, keep_BT: Tensor, images: Sequence[Sequence[str]] = (), flat: FlatRows | None = None
    ) -> Tensor:
        """The last hidden states [N, D] of some places of rows, on the device of the token ids.

        Args:
            keep_BT: the places.
            images: the digests of each row's images, for a model that sees them.
            flat: the rows as one sequence, if they are short.
        """
        if self.vision is None and flat is not None and (hidden_ND := flat.hidden(self.model)) is not None:
            return hidden_ND.index_select(0, flat.layout.places(*keep_BT.nonzero(as_tuple=True)))
        on = input_device(self.model)
        seen: dict[str, Tensor] = {}
        if self.vision is not None:
            rows = list(zip(ids_BT.cpu().numpy(), images, strict=True))
            seen = self.vision.inputs(ids_BT.to(on), rows)
        hidden_BTD: Tensor = self.body(input_ids=ids_BT.to(on), use_cache=False, **seen).last_hidden_state
        return hidden_BTD.to(ids_BT.device)[keep_BT]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in float32, on the device of the hidden states."""
        with head_of(self.model) as head:
            return head.logits(hidden_ND.to(head.weight_VD.device)).float().to(hidden_ND.device)

    @property
    def outputs(self) -> int:
        """Rows of the output layer, V."""
        return int(self.model.get_output_embeddings().weight.shape[0])


@dataclass(frozen=True)
class OwnTeacher:
    """A teacher of some of the rows, where they have several."""

    name: str
    teacher: Measured
    rows: Sequence[int]
    """The numbers of its rows."""


def token_metrics(
    student: Measured,
    teacher: Measured | None,
    shared_vocabulary: int,
    rows: Sequence[tuple[TokenIds, Mask]],
    pad: int,
    batch_size: int,
    task: Task,
    stop: StopSignal,
    observers: Sequence[TokenObserver] = (),
    chosen: Mapping[str, MetricConfig] | None = None,
    images: Sequence[Sequence[str]] | None = None,
    teachers_rows: Sequence[tuple[TokenIds, Mask]] | None = None,
    own: Sequence[OwnTeacher] = (),
) -> dict[str, float | None]:
    """Metrics of kind "tokens"; None for metrics that need a teacher where there is none.

    Where teachers are several, a metric that needs one compares each row with its own; beside that of all rows there
    is that of each teacher's, as `metric/teacher`.

    Args:
        shared_vocabulary: token ids below this mean the same token to both models.
        rows: token ids and the mask of answer tokens of each row.
        observers: shown every slice after the metrics.
        chosen: the metrics by name; by default all.
        images: the digests of each row's images; by default none has any.
        teachers_rows: the rows as the teacher reads them, with the same answer tokens; by default as they are.
        own: in the place of `teacher`, several, each of which has some of the rows.
    """
    shown = [()] * len(rows) if images is None else images
    metrics = _made(chosen, "tokens")
    compares = teacher is not None or bool(own)
    active = {name: metric for name, metric in metrics.items() if compares or not metric.needs_teacher}
    by_teacher: dict[str, Any] = {}
    for name, reader, numbers in _readers(teacher, len(rows), own):
        theirs = _compared(chosen, name) if own else {}
        by_teacher |= theirs
        order = sorted(numbers, key=lambda index: len(rows[index][0]))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                stop.raise_if_requested()
                batch = order[start : start + batch_size]
                for part in _slices(student, reader, shared_vocabulary, rows, teachers_rows, shown, batch, pad):
                    for observer in (*active.values(), *theirs.values(), *observers):
                        observer.update(part)
                task.advance(len(batch), tokens=sum(len(rows[index][0]) for index in batch))
    found = {name: active[name].value() if name in active else None for name in metrics}
    return found | {name: metric.value() for name, metric in by_teacher.items()}


def _readers(
    teacher: Measured | None, count: int, own: Sequence[OwnTeacher]
) -> list[tuple[str, Measured | None, Sequence[int]]]:
    """(name, teacher, numbers of the rows that it reads)."""
    return [(one.name, one.teacher, one.rows) for one in own if one.rows] or [("", teacher, range(count))]


def _compared(chosen: Mapping[str, MetricConfig] | None, teacher: str) -> dict[str, Any]:
    """New instances of the metrics that compare with a teacher, for the rows of one."""
    made = _made(chosen, "tokens")
    return {f"{name}/{teacher}": metric for name, metric in made.items() if metric.needs_teacher}


def _made(chosen: Mapping[str, MetricConfig] | None, kind: str) -> dict[str, Any]:
    """New instances of the chosen metrics of one kind."""
    modules = {name: METRICS.module(name) for name in (METRICS.loaded() if chosen is None else chosen)}
    return {
        name: make_metric(module, module.Config() if chosen is None else chosen[name])
        for name, module in modules.items()
        if module.Metric.kind == kind
    }


@dataclass(frozen=True)
class _Batch:
    """Rows, padded on the right."""

    ids_BT: Tensor
    mask_BT: Tensor
    flat: FlatRows | None

    @classmethod
    def of(cls, rows: Sequence[tuple[TokenIds, Mask]], pad: int, on: torch.device) -> _Batch:
        ids_BT = torch.tensor(padded([ids for ids, _ in rows], pad), device=on)
        mask_BT = torch.tensor(padded([mask for _, mask in rows], False), device=on)
        return cls(ids_BT, mask_BT, flat_rows([ids for ids, _ in rows], on))

    def hidden(self, model: Measured, images: Sequence[Sequence[str]]) -> Tensor:
        """The hidden states [N, D] that predict the tokens of the mask."""
        before_BT = torch.nn.functional.pad(self.mask_BT[:, 1:], (0, 1))
        return model.hidden(self.ids_BT, before_BT, images, self.flat)


def _slices(
    student: Measured,
    teacher: Measured | None,
    shared: int,
    rows: Sequence[tuple[TokenIds, Mask]],
    teachers_rows: Sequence[tuple[TokenIds, Mask]] | None,
    images: Sequence[Sequence[str]],
    batch: Sequence[int],
    pad: int,
) -> Iterator[TokenRows]:
    """Slices of the answer tokens of a batch (indices of rows), none larger than `SLICE_BYTES` of float32 logits."""
    own = _Batch.of([rows[index] for index in batch], pad, student.model.device)
    # Row t predicts token t+1; the kept tokens are those that are predicted.
    keep_BT = own.mask_BT[:, 1:]
    target_N, position_N = own.ids_BT[:, 1:][keep_BT], positions(own.mask_BT)[:, 1:][keep_BT]
    at_N, before_N = keep_BT.nonzero(as_tuple=True)
    row_N, column_N = torch.tensor(batch, device=own.ids_BT.device)[at_N], before_N + 1
    shown = [images[index] for index in batch]
    student_ND = own.hidden(student, shown)
    teacher_ND = None
    if teacher is not None:
        read = own
        if teachers_rows is not None:
            read = _Batch.of([teachers_rows[index] for index in batch], pad, student.model.device)
        teacher_ND = read.hidden(teacher, shown)
    step = rows_per_chunk(student.outputs, SLICE_BYTES)
    for start in range(0, len(target_N), step):
        part = slice(start, start + step)
        logits_NV = student.logits(student_ND[part])
        full_NV = logits_NV.log_softmax(-1)
        teacher_NV = shared_NV = None
        if teacher is not None and teacher_ND is not None:
            teacher_NV = teacher.logits(teacher_ND[part])[:, :shared].log_softmax(-1)
            same = shared == logits_NV.shape[1]
            shared_NV = full_NV if same else logits_NV[:, :shared].log_softmax(-1)
        yield TokenRows(target_N[part], full_NV, shared_NV, teacher_NV, row_N[part], column_N[part], position_N[part])


def positions(mask_BT: Tensor) -> Tensor:
    """Each answer token's position in its answer, from 1; 0 elsewhere. An answer is a run of true in the mask."""
    seen_BT = mask_BT.long().cumsum(1)
    before_BT = seen_BT.masked_fill(mask_BT, 0).cummax(1).values
    return (seen_BT - before_BT).masked_fill(~mask_BT, 0)


def answers(
    model: Any,
    prompts: Sequence[list[int]],
    eos_ids: frozenset[int],
    max_new_tokens: int,
    batch_size: int,
    decode: Callable[[int, list[int]], str],
    task: Task,
    stop: StopSignal,
    vision: Vision | None = None,
    images: Sequence[Sequence[str]] = (),
) -> list[str]:
    """Greedy answers to the prompts, in the same order.

    Args:
        decode: (number of the prompt, token ids) → the answer's text.
        vision: of a model that sees images.
        images: the digests of each prompt's images, for such a model.
    """
    texts: list[str] = [""] * len(prompts)
    lengths = [len(prompt) for prompt in prompts]
    equal = len(set(lengths)) > 1 and reads_padding(model, prompts[0])
    graphs = DecodeGraphs()
    with torch.inference_mode():
        for chosen in batches_by_length(lengths, batch_size, sys.maxsize, max_new_tokens, equal=equal):
            stop.raise_if_requested()
            sampler = SeededSampler([0] * len(chosen), temperature=0.0)
            asked = [prompts[index] for index in chosen]
            shown = [images[index] for index in chosen] if vision is not None else None
            batch = generate_batch(
                model, asked, eos_ids, max_new_tokens, sampler, graphs=graphs, vision=vision, images=shown
            )
            for index, answer in zip(chosen, batch, strict=True):
                texts[index] = decode(index, answer.ids)
            task.advance(len(chosen), tokens=sum(len(answer.ids) for answer in batch))
    return texts


def image_metrics(
    means: tuple[float, float] | None, chosen: Mapping[str, MetricConfig] | None = None
) -> dict[str, float | None]:
    """Metrics of kind "images", of the cross-entropies with the rows' own images and with others; None without rows."""
    metrics = _made(chosen, "images")
    return {name: None if means is None else metric.value(*means) for name, metric in metrics.items()}


def answer_metrics(
    texts: Sequence[str], references: Sequence[str], chosen: Mapping[str, MetricConfig] | None = None
) -> dict[str, list[float]]:
    """Metrics of kind "answers", one score per row; `chosen` as in `token_metrics`."""
    return {
        name: [metric.score(text, reference) for text, reference in zip(texts, references, strict=True)]
        for name, metric in _made(chosen, "answers").items()
    }
