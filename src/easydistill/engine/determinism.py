"""`deterministic: true`: the same files run for run and resume for resume, on one kind of device.

Everything here is set before a run looks at anything, hence before CUDA starts (to ask a GPU for its memory starts it):
cuBLAS reads its variable once. Children inherit the variables; a process that runs a stage comes here itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

from easydistill.engine.environment import restored
from easydistill.errors import ConfigError, ConfigIssue, NotDeterministic

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
REPRODUCIBLE = (":4096:8", ":16:8")
"""The workspaces with which cuBLAS gives the same sums in every run, whatever its streams do."""
VARIABLES = {CUBLAS: REPRODUCIBLE[0], "FLASH_ATTENTION_DETERMINISTIC": "1"}
"""What libraries read: cuBLAS, and transformers' calls of flash-attn."""
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
"""What vLLM reads; `models/vllm.py` sets it, where vLLM runs on a GPU."""
_REFUSED = ("does not have a deterministic implementation", "Deterministic behavior was enabled with either")
"""How torch's errors about this begin or end."""


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Compute deterministically inside, if `wanted`; afterwards all is as before.

    Raises:
        ConfigError: it is too late for this process, or the environment says otherwise.
        NotDeterministic: an operation has no deterministic implementation.
    """
    if not wanted:
        yield
        return
    _check()
    with _variables(), _flags(), explained_refusals():
        yield


@contextlib.contextmanager
def explained_refusals() -> Iterator[None]:
    """torch's errors about operations that cannot be deterministic, in words.

    Raises:
        NotDeterministic: in place of such an error.
    """
    try:
        yield
    except NotDeterministic:
        raise
    except RuntimeError as error:
        if any(text in str(error) for text in _REFUSED):
            raise NotDeterministic(_explained(str(error))) from error
        raise


def is_deterministic() -> bool:
    """Whether this process computes deterministically now."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.are_deterministic_algorithms_enabled())


def _check() -> None:
    set_to = os.environ.get(CUBLAS)
    if set_to is not None and set_to not in REPRODUCIBLE:
        problem = f"{CUBLAS}={set_to} makes matrix products depend on timing"
        raise ConfigError(ConfigIssue("environment", "deterministic", problem, f"unset it, or use {REPRODUCIBLE[0]}"))
    torch: Any = sys.modules.get("torch")
    if set_to is None and torch is not None and torch.cuda.is_initialized():
        problem = "this process has used the GPU already, and cuBLAS reads its settings once"
        hint = f"set {CUBLAS}={REPRODUCIBLE[0]} before Python starts, or run the job in a process of its own"
        raise ConfigError(ConfigIssue("config", "deterministic", problem, hint))


@contextlib.contextmanager
def _variables() -> Iterator[None]:
    with restored((*VARIABLES, BATCH_INVARIANT)):
        # A workspace that the user chose is a good one: `_check` has looked at it.
        chosen = os.environ.get(CUBLAS) or VARIABLES[CUBLAS]
        os.environ.update({**VARIABLES, CUBLAS: chosen})
        yield


@contextlib.contextmanager
def _flags() -> Iterator[None]:
    """torch's own switches. Attention needs none: torch makes its backward passes deterministic, or takes others."""
    if importlib.util.find_spec("torch") is None:
        # Nothing is computed here then: a teacher behind an API answers.
        yield
        return
    import torch

    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        (cudnn.deterministic, cudnn.benchmark),
        memory.fill_uninitialized_memory,
    )
    # Not `warn_only`: attention would then keep its atomic additions.
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    # Our results never depend on memory that nobody wrote, and filling it takes time.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2]
        memory.fill_uninitialized_memory = before[3]


def _explained(text: str) -> str:
    operation = text.strip().split(" ")[0]
    if text.startswith(_REFUSED[1]):
        return f"deterministic: {text}\n    → set {CUBLAS}={REPRODUCIBLE[0]} before Python starts"
    return (
        f"deterministic: torch has no deterministic implementation of {operation} here\n"
        "    → remove `deterministic`, or use a model, a device or a version of torch that does without it"
    )
