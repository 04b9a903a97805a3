"""The layers of a student on a CUDA device, recorded once for each shape of batch and replayed after that.

A training step is thousands of kernels, which a GPU often finishes before Python has launched them. Recorded as two
CUDA graphs, forward and backward pass of the layers are launched as two. The embedding before them, the loss behind
them and the optimiser are launched as ever: the number of learned tokens differs from batch to batch.

A recorded pass is bound to its memory. Inputs are copied in and results copied out. Gradients are added to buffers that
become the parameters' `.grad`: a step that sets those to None has them emptied and attached again. All recordings share
the memory of their activations, so the backward pass belongs to the forward pass before it. Each recording is checked
against the layers themselves before it is used; where recording fails, the training goes on without.

Shapes: B rows, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from easydistill.models.head import body_of

SHARE_OF_MEMORY = 50
"""Inputs and results of all recordings take at most this part of the device's memory."""
TOLERANCE = 2e-2
"""Largest relative difference of a replayed pass from the layers' own, which compute in bfloat16."""
_WARM_UPS = 2

Replay = Callable[[], None]


class Recorder(Protocol):
    """What makes a function on tensors that keep their place repeatable."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Run a function as it will be recorded, so that libraries have allocated what they need."""

    def record(self, run: Callable[[], None]) -> Replay:
        """What repeats the function's work on the device. Nothing that the function does on the host is repeated."""


class CudaRecorder:
    """CUDA graphs that share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], None]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)

    def record(self, run: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Other threads, as those that pin memory for the next batches, go on with what they do.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


class BodyGraphs:
    """Recorded passes of a student's layers, by shape of batch.

    Args:
        model: the student, or its adapters around it, on its device when the first batch comes.
        say: tells the user.
        recorder: makes what records, when the first shape is; None for CUDA graphs.
        room: bytes for inputs and results of all recordings; None for what suits the device.
    """

    def __init__(
        self,
        model: Any,
        say: Callable[[str], None],
        recorder: Callable[[], Recorder] | None = None,
        room: int | None = None,
    ) -> None:
        self._model = model
        self._say = say
        self._make_recorder = recorder or CudaRecorder
        self._recorder: Recorder | None = None
        self._anchor: Tensor | None = None
        self._room = room
        self._seen: set[torch.Size] = set()
        self._recorded: dict[torch.Size, _Pass] = {}
        self._gradients: _Gradients | None = None
        self.refused = False
        """Whether a recording failed, and no more are tried."""

    def __call__(self, ids_BT: Tensor) -> Tensor | None:
        """Hidden states [B, T, D] of a batch, to be propagated back before the next; None if its shape is not recorded.

        A shape is recorded the second time it comes. The result is overwritten by the next batch of this shape.
        """
        if self.refused or not torch.is_grad_enabled():
            return None
        shape = ids_BT.shape
        if shape not in self._recorded:
            if shape not in self._seen or not self._has_room():
                self._seen.add(shape)
                return None
            self._record(ids_BT)
            if self.refused:
                return None
        recorded = self._recorded[shape]
        embeds_BTD = body_of(self._model).get_input_embeddings()(ids_BT)
        if self._anchor is None:
            self._anchor = torch.zeros((), device=embeds_BTD.device, requires_grad=True)
        hidden_BTD: Tensor = _Replayed.apply(embeds_BTD, self._anchor, recorded)
        return hidden_BTD

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The recorded shapes [B, T]."""
        return [tuple(shape) for shape in self._recorded]

    def _has_room(self) -> bool:
        if self._room is None:
            device = next(self._model.parameters()).device
            self._room = torch.cuda.get_device_properties(device).total_memory // SHARE_OF_MEMORY
        return sum(recorded.bytes for recorded in self._recorded.values()) < self._room

    def _record(self, ids_BT: Tensor) -> None:
        try:
            self._recorder = self._recorder or self._make_recorder()
            self._gradients = self._gradients or _Gradients(self._model)
            recorded = _Pass(self._model, ids_BT, self._recorder, self._gradients)
        # What a library does not allow while it is recorded, it raises as an error of its own kind.
        except (RuntimeError, TypeError, ValueError) as error:
            self._refuse(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return
        if recorded.error > TOLERANCE:
            self._refuse(f"replayed, the layers give other numbers ({recorded.error:.2g})")
            return
        self._recorded[ids_BT.shape] = recorded

    def _refuse(self, problem: str) -> None:
        self.refused = True
        self._recorded.clear()
        self._recorder = self._gradients = None
        self._say(f"  note: the student's layers are not recorded as CUDA graphs, steps are slower: {problem}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Gradients:
    """Where recorded passes add the gradients of the layers' parameters."""

    def __init__(self, model: Any) -> None:
        body = body_of(model)
        embedding = {id(weight) for weight in body.get_input_embeddings().parameters()}
        self.parameters = [
            weight for weight in body.parameters() if weight.requires_grad and id(weight) not in embedding
        ]
        self.buffers = [torch.zeros_like(weight) for weight in self.parameters]

    def attach(self) -> None:
        """Make the buffers the parameters' `.grad`, with what is in there."""
        fresh: list[Tensor] = []
        for weight, buffer in zip(self.parameters, self.buffers, strict=True):
            if weight.grad is None:
                fresh.append(buffer)
                weight.grad = buffer
            elif weight.grad.data_ptr() != buffer.data_ptr():
                # Of a micro-batch that was not recorded.
                buffer.copy_(weight.grad)
                weight.grad = buffer
        if fresh:
            torch._foreach_zero_(fresh)

    def empty(self) -> None:
        if self.buffers:
            torch._foreach_zero_(self.buffers)

    def add(self, found: Sequence[Tensor | None]) -> None:
        reached = [(buffer, one) for buffer, one in zip(self.buffers, found, strict=True) if one is not None]
        if reached:
            torch._foreach_add_(*map(list, zip(*reached, strict=True)))


class _Pass:
    """Forward and backward pass of the layers for one shape of batch.

    Raises:
        RuntimeError: what the layers do cannot be recorded.
    """

    def __init__(self, model: Any, ids_BT: Tensor, recorder: Recorder, gradients: _Gradients) -> None:
        self._body = body_of(model)
        self._all = gradients
        embeds_BTD = self._body.get_input_embeddings()(ids_BT).detach()
        self._in_BTD = embeds_BTD.clone().requires_grad_()
        self._live_BTD: Tensor | None = None
        # Casts of weights that are kept for this pass must neither be recorded as inputs, nor survive the recording.
        torch.clear_autocast_cache()
        wanted_BTD = self._body(input_ids=ids_BT, use_cache=False).last_hidden_state.detach()
        self.hidden_BTD = torch.zeros_like(wanted_BTD)
        # Numbers of its own: those of the training stay as they were.
        draw = torch.Generator(wanted_BTD.device).manual_seed(0)
        self.dhidden_BTD = torch.zeros_like(wanted_BTD).normal_(generator=draw)
        self.dembeds_BTD = torch.zeros_like(embeds_BTD)
        before = [None if weight.grad is None else weight.grad.clone() for weight in gradients.parameters]
        for _ in range(_WARM_UPS):
            recorder.warm_up(self._both)
        dembeds_BTD, norms_P = self.dembeds_BTD.clone(), self._norms()
        torch.clear_autocast_cache()
        self._forward = recorder.record(self._run_forward)
        self._backward = recorder.record(self._run_backward)
        self._live_BTD = None
        torch.clear_autocast_cache()
        gradients.empty()
        self.hidden_BTD.zero_()
        self.dembeds_BTD.zero_()
        self._forward()
        self._backward()
        pairs = [(self.hidden_BTD, wanted_BTD), (self.dembeds_BTD, dembeds_BTD), (self._norms(), norms_P)]
        self.error = max(_difference(found, wanted) for found, wanted in pairs)
        for weight, buffer, kept in zip(gradients.parameters, gradients.buffers, before, strict=True):
            if kept is not None:
                buffer.copy_(kept)
                weight.grad = buffer

    @property
    def bytes(self) -> int:
        """Of inputs and results."""
        return sum(
            each.numel() * each.element_size()
            for each in (self._in_BTD, self.hidden_BTD, self.dhidden_BTD, self.dembeds_BTD)
        )

    def forward(self, embeds_BTD: Tensor) -> Tensor:
        """Hidden states, in memory that the next call overwrites."""
        with torch.no_grad():
            self._in_BTD.copy_(embeds_BTD)
        self._forward()
        return self.hidden_BTD.detach()

    def backward(self, dhidden_BTD: Tensor) -> Tensor:
        """The gradient of the embeddings; those of the parameters are added to their `.grad`."""
        self.dhidden_BTD.copy_(dhidden_BTD)
        self._all.attach()
        self._backward()
        return self.dembeds_BTD

    def _both(self) -> None:
        self._all.empty()
        self._run_forward()
        self._run_backward()
        self._live_BTD = None

    def _run_forward(self) -> None:
        self._live_BTD = self._body(inputs_embeds=self._in_BTD, use_cache=False).last_hidden_state
        self.hidden_BTD.copy_(self._live_BTD.detach())

    def _run_backward(self) -> None:
        assert self._live_BTD is not None
        with torch.autocast(self.hidden_BTD.device.type, enabled=False):
            dembeds_BTD, *found = torch.autograd.grad(
                self._live_BTD, [self._in_BTD, *self._all.parameters], self.dhidden_BTD, allow_unused=True
            )
            assert dembeds_BTD is not None
            self.dembeds_BTD.copy_(dembeds_BTD)
            self._all.add(found)

    def _norms(self) -> Tensor:
        """[P]: of each parameter's gradient."""
        buffers = self._all.buffers
        return torch.stack(torch._foreach_norm(buffers)) if buffers else self.dembeds_BTD.new_zeros(1)


class _Replayed(torch.autograd.Function):
    """A recorded pass as an operation. The anchor has it propagated back where embeddings are not trained."""

    @staticmethod
    def forward(ctx: Any, embeds_BTD: Tensor, anchor: Tensor, recorded: _Pass) -> Tensor:
        ctx.recorded = recorded
        return recorded.forward(embeds_BTD)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return ctx.recorded.backward(outer[0]), None, None


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Relative; infinite if it is no number."""
    difference = float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-20))
    return difference if difference == difference else float("inf")


def draws_random_numbers(model: Any) -> bool:
    """Whether a training pass of a model draws random numbers, as dropout does."""
    config = model.config.get_text_config()
    dropouts = (module for module in model.modules() if isinstance(module, torch.nn.Dropout))
    return any(module.p > 0 for module in dropouts) or bool(getattr(config, "attention_dropout", 0))
