"""Decoding on a CUDA device: a step of the model and the draw of its tokens are recorded once and replayed per token.

A step of a small model is hundreds of kernels, which a GPU finishes before Python has launched them. A recorded step (a
CUDA graph) is launched as one. Its tensors may not move, so the cache has its full size from the beginning, random
numbers are on the device before the first token, and whether all rows have ended is asked every few steps, one question
late. Shapes depend on the batch alone, and so do answers.

Shapes: B rows, V vocabulary, T tokens, N new tokens, E end tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import StaticCache

from easydistill.engine.run_directory import LOGGER
from easydistill.models.decoding.attention import grouped_attention
from easydistill.models.decoding.batch import NextLogits, padded_left
from easydistill.models.decoding.check import decodes
from easydistill.models.draws import DrawRule, SeededSampler, draw

if TYPE_CHECKING:
    import torch

CHECK_EVERY = 16
"""Steps between two questions whether all rows have ended."""
ROWS_STEP, CAPACITY_STEP = 16, 128
"""Rows and tokens are rounded up to multiples of these, so that more batches share a recorded step."""
_WARM_UPS = 2


class StaticBatch:
    """As `Batch`, in tensors that keep their place and size.

    Args:
        model: a causal language model, on its device.
        rows: most prompts.
        capacity: most tokens of a row, the new ones included.
    """

    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        import torch

        self._cache = StaticCache(config=model.config, max_cache_len=capacity)
        self._forward = NextLogits(model, self._cache)
        self._seen_BT = torch.ones(rows, capacity, dtype=torch.long, device=model.device)
        self._position_B1 = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self._ids_BT = self._position_B1

    @classmethod
    def of(cls, model: Any, prompts: Sequence[list[int]], room: int) -> StaticBatch:
        made = cls(model, len(prompts), max(map(len, prompts)) + room)
        made.load(prompts)
        return made

    def load(self, prompts: Sequence[list[int]]) -> None:
        """Take these prompts in place of those before. Spare rows repeat the first."""
        rows = len(self._seen_BT)
        self._ids_BT, seen_BT = padded_left([*prompts, *[prompts[0]] * (rows - len(prompts))], 0, self._seen_BT.device)
        # Columns that are not filled yet are masked as the future.
        self._seen_BT.fill_(1)
        self._seen_BT[:, : seen_BT.shape[1]] = seen_BT

    def begin(self) -> torch.Tensor:
        """Logits (B, V) of each row's first new token."""
        self._cache.reset()
        positions_BT = (self._seen_BT[:, : self._ids_BT.shape[1]].cumsum(-1) - 1).clamp(min=0)
        self._position_B1.copy_(positions_BT[:, -1:])
        return self._forward(self._ids_BT, self._seen_BT, positions_BT)

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) of the tokens after `tokens_B`."""
        self._position_B1.add_(1)
        return self._forward(tokens_B[:, None], self._seen_BT, self._position_B1)


class RecordedStep:
    """Batches of one shape, answered by one step that is repeated.

    Args:
        rows, capacity: as for `StaticBatch`.
        room: most new tokens of a row.
        ends: tokens that end an answer.
        rule: what all rows draw by.
    """

    def __init__(self, model: Any, rows: int, capacity: int, room: int, ends: frozenset[int], rule: DrawRule) -> None:
        import torch

        on = model.device
        self._batch, self._rule = StaticBatch(model, rows, capacity), rule
        self._uniform_BN = torch.zeros(rows, room, dtype=torch.float64, device=on)
        self._heat_B1 = torch.ones(rows, 1, device=on)
        self._written_BN = torch.zeros(rows, room, dtype=torch.long, device=on)
        self._ended_B = torch.zeros(rows, dtype=torch.bool, device=on)
        self._ends_E = torch.tensor(sorted(ends), dtype=torch.long, device=on)
        self._at_1 = torch.zeros(1, dtype=torch.long, device=on)
        self._logits_BV: torch.Tensor | None = None
        self._graph: Any = None

    def answer(self, prompts: Sequence[list[int]], sampler: SeededSampler, *, record: bool) -> list[list[int]]:
        """New tokens of each prompt; those after an end token mean nothing.

        Args:
            record: replay the step from a graph, which is recorded the first time.
        """
        rows, room = len(prompts), self._uniform_BN.shape[1]
        self._batch.load(prompts)
        # Recorded before numbers are drawn: if it fails, the streams are as they were.
        if record and self._graph is None:
            self._record(rows)
        self._uniform_BN[:rows] = sampler.uniforms(room).to(self._uniform_BN.device)
        self._heat_B1[:rows] = sampler.temperatures().to(self._heat_B1.device)
        self._start(rows)
        ended = _LateQuestion(self._ended_B)
        done = 0
        while done < room:
            if record:
                self._graph.replay()
            else:
                self._step()
            done += 1
            if done % CHECK_EVERY == 0 and ended.answered():
                break
        written: list[list[int]] = self._written_BN[:rows, :done].tolist()
        return written

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def _start(self, rows: int) -> None:
        logits_BV = self._batch.begin()
        if self._logits_BV is None:
            self._logits_BV = logits_BV.clone()
        self._logits_BV.copy_(logits_BV)
        self._at_1.zero_()
        self._ended_B[:rows], self._ended_B[rows:] = False, True

    def _step(self) -> None:
        """Draw a token for every row and compute the logits after it. Nothing here waits for the device."""
        assert self._logits_BV is not None
        uniform_B1 = self._uniform_BN.index_select(1, self._at_1)
        tokens_B = draw(self._logits_BV, uniform_B1, self._heat_B1, self._rule)
        self._written_BN.index_copy_(1, self._at_1, tokens_B[:, None])
        self._ended_B.logical_or_((tokens_B[:, None] == self._ends_E).any(-1))
        self._at_1.add_(1)
        self._logits_BV.copy_(self._batch.step(tokens_B))

    def _record(self, rows: int) -> None:
        import torch

        # Libraries allocate their workspaces at the first step, which must not be recorded.
        side = torch.cuda.Stream(self._heat_B1.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._start(rows)
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph


class _LateQuestion:
    """Whether all rows have ended, as of the last time it was asked: the device is not waited for."""

    def __init__(self, ended_B: torch.Tensor) -> None:
        import torch

        self._ended_B = ended_B
        self._on_device = ended_B.is_cuda
        self._all = torch.zeros((), dtype=torch.bool, device="cpu", pin_memory=self._on_device)
        self._copied: Any = None

    def answered(self) -> bool:
        import torch

        if not self._on_device:
            return bool(self._ended_B.all())
        before = False
        if self._copied is not None:
            self._copied.synchronize()
            before = bool(self._all)
        self._all.copy_(self._ended_B.all(), non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return before


class DecodeGraphs:
    """The recorded step of the last batch, for the next of the same shape.

    Keep one for as long as batches of one model are answered; it holds a cache on the device.

    Args:
        record: False runs the same steps without a graph.
    """

    def __init__(self, *, record: bool = True) -> None:
        self._record = record
        self._refused = False
        self._shape: Any = None
        self._step: RecordedStep | None = None

    def decode(
        self, model: Any, prompts: Sequence[list[int]], eos_ids: frozenset[int], room: int, sampler: SeededSampler
    ) -> list[list[int]] | None:
        """New tokens of each prompt, those after an end token without meaning; None if the model cannot be recorded."""
        import torch

        if self._refused or not decodes(model, prompts[0], StaticBatch.of):
            return None
        rows = _rounded(len(prompts), ROWS_STEP)
        capacity = _rounded(max(map(len, prompts)) + room, CAPACITY_STEP)
        shape = (model, rows, capacity, room, eos_ids, sampler.rule)
        with torch.no_grad(), grouped_attention(model):
            if shape != self._shape:
                # The old one first: two caches might not fit.
                self._step = None
                self._step, self._shape = RecordedStep(*shape), shape
            assert self._step is not None
            try:
                return self._step.answer(prompts, sampler, record=self._record)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if not self._record or self._step.recorded:
                    raise
                problem = str(error).strip().split("\n")[0]
                LOGGER.info("decoding without a CUDA graph, which does not hold this model's step: %s", problem)
                self._refused, self._step, self._shape = True, None, None
                return None


def recordable(model: Any) -> bool:
    """Whether all of a model is on one CUDA device."""
    return all(part.is_cuda and part.device == model.device for part in model.parameters())


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
