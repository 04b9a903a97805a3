"""Compiled layers: torch.compile on each decoder layer of a student, told to the user and watched.

The layers of a model run the same code, so it is compiled once for all of them, in seconds; a whole model would take
minutes. Where all batches have one shape it is compiled for that shape; where they differ, once for every shape, so
that an epoch of mixed lengths does not compile again and again. What the compiler fuses are norms, activations, rotary
embeddings and casts; matrix products and attention stay the libraries' own.

The compiler keeps what it made with the code of a function, not with a model, makes at most
`torch._dynamo.config.recompile_limit` versions of it, and then runs that function uncompiled for the rest of the
process. So every training starts and ends with an empty compiler. What others have compiled in this process is compiled
again when they call it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from easydistill.methods.sft.batching import BOUNDS
from easydistill.models.head import body_of, decoder_of

LENGTH_MULTIPLE = 64
"""Batches are padded to a multiple of this many tokens, so that compiled code need not tell lengths apart by what they
are divisible by."""
FROM_BATCHES = 1000
"""`auto` compiles trainings of at least so many micro-batches: fewer do not win back what compiling costs."""
_EXPECTED = "half a minute to two"
_MANY = 4
"""So many times the compilations before the first step are more than other shapes explain: a batch of one row, the
last batch of an epoch."""


def inductor(graph: Any, inputs: Any) -> Any:
    """PyTorch's own compiler."""
    return torch._dynamo.lookup_backend("inductor")(graph, inputs)


def wants_compiling(setting: bool | str, on: torch.device, micro_batches: float) -> bool:
    """Whether `training.compile` asks for compiled layers in a training of so many micro-batches."""
    if isinstance(setting, bool):
        return setting
    return on.type == "cuda" and micro_batches >= FROM_BATCHES


def decoder_layers(model: Any) -> list[Any]:
    """The layers that repeat: what transformers itself recomputes with gradient checkpointing."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in decoder_of(model).modules() if isinstance(module, GradientCheckpointingLayer)]


class CompiledLayers:
    """The decoder layers of a model, compiled in place; `restore` undoes it.

    Args:
        model: the student, or its adapters around it.
        dynamic: compile for any shape, not for one.
        say: tells the user.
    """

    def __init__(self, model: Any, *, dynamic: bool, say: Callable[[str], None]) -> None:
        self.compilations = 0
        self._layers = decoder_layers(model)
        self._say = say
        self._versions: Counter[int | None] = Counter()
        self._settled: int | None = None
        self._told = False
        if not self._layers:
            self._say(f"  note: {type(model).__name__} is not compiled: it has no layers that repeat")
            return
        torch.compiler.reset()
        for layer in self._layers:
            layer.compile(backend=self._backend, dynamic=dynamic)

    def _backend(self, graph: Any, inputs: Any) -> Any:
        """Inductor, counted: in all, and for each function that the compiler took apart."""
        compiled = inductor(graph, inputs)
        self.compilations += 1
        current = torch._guards.CompileContext.current_compile_id()
        self._versions[current.frame_id if current else None] += 1
        return compiled

    @property
    def active(self) -> bool:
        return bool(self._layers)

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """Compile now, by a forward and a backward pass of `run`; if that fails, go on without and say so."""
        if not self.active:
            return
        self._say(f"Compiling the student's layers; this usually takes {_EXPECTED}")
        start = time.monotonic()
        try:
            run().backward()
        # The compiler meets code and machines of all kinds and raises what they raise; nothing of the training has
        # happened yet, and it goes on without the compiler.
        except Exception as error:
            self.restore()
            what = " ".join(str(error).split())[:200]
            self._say(f"  note: the layers are not compiled, the steps are slower: {type(error).__name__}: {what}")
            return
        if not self.compilations:
            self.restore()
            self._say(
                "  note: the layers are not compiled, the steps are slower: PyTorch's compiler left them as they are "
                "(is it turned off by TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE?)"
            )
            return
        self._say(f"  compiled in {time.monotonic() - start:.0f} s")
        self._settled = self.compilations

    def watch(self) -> None:
        """Say, once, if the layers have been compiled again and again since, or as often as the compiler allows."""
        if self._settled is None or self._told:
            return
        full = max(self._versions.values()) >= torch._dynamo.config.recompile_limit
        if not full and self.compilations <= _MANY * self._settled:
            return
        self._told = True
        again = self.compilations - self._settled
        limit = "; that is the most, and other shapes now run uncompiled" if full else ""
        self._say(
            f"  note: the layers were compiled {again} more times{limit}; if steps stay slow, training.compile=false "
            "trains without, from the start again"
        )

    def restore(self) -> None:
        """Run the layers' own code again."""
        if not self._layers:
            return
        for layer in self._layers:
            layer._compiled_call_impl = None
        self._layers = []
        torch.compiler.reset()


def pass_through(model: Any, batch: Mapping[str, Any], autocast: bool) -> Tensor:
    """A forward pass of the body over a batch, as the trainer makes it, to one number.

    Random states stay as they were; gradients are the caller's to drop.
    """
    on = next(model.parameters()).device
    read = ("input_ids", "position_ids", *BOUNDS)
    inputs = {
        name: value.to(on) if isinstance(value, Tensor) else value for name, value in batch.items() if name in read
    }
    with torch.random.fork_rng(), torch.autocast(on.type, torch.bfloat16, enabled=autocast):
        hidden_BTD = body_of(model)(**inputs, use_cache=False).last_hidden_state
    return hidden_BTD.float().square().mean()


@contextlib.contextmanager
def fast_matrix_products(on: torch.device, bf16: bool) -> Iterator[None]:
    """TF32 for the few products that stay in float32 where a GPU computes in bfloat16; restored afterwards."""
    before = torch.get_float32_matmul_precision()
    if on.type == "cuda" and bf16:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
