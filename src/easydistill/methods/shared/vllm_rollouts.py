"""The student's answers from vLLM, in the process and on the device in which it is trained.

The engine begins with random weights of the student's shape; before each round of answers it takes over the present
ones (`reload_weights`, which also prepares them for vLLM's kernels). Answers are drawn from the student's distribution
as vLLM computes it, in lower precision; the losses use log-probabilities that the training computes itself.

Each row has its own random stream on a GPU. On a CPU vLLM cannot seed single rows: there all draws of a round come from
one stream, which depends on the seed and the step.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easydistill.contracts.teacher import row_seed
from easydistill.errors import ConfigError, ConfigIssue, MissingExtra, ModelError
from easydistill.methods.shared.restored import RandomState
from easydistill.methods.shared.rollouts import Written
from easydistill.models.loading import choose_dtype, device
from easydistill.models.student import Student
from easydistill.models.vllm import prepare_environment

IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
MOST_AT_ONCE = 256
"""Answers that are generated at the same time."""


class VllmWriter:
    """Writes the student's answers with vLLM.

    Args:
        student: the shape that the engine is made for; its vocabulary trimmed already.
        longest: tokens of the longest prompt with its answer.
        memory_share: share of the GPU's memory that the engine takes, beside the training's.

    Raises:
        ConfigError: several processes train.
        MissingExtra: vLLM is not installed.
        ModelError: vLLM cannot run such a model, or has no room for it.
    """

    def __init__(self, student: Student, longest: int, memory_share: float, *, trust_remote_code: bool = False) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            problem = "vLLM shares the device of one process, but several train"
            raise ConfigError(ConfigIssue("config", "on_policy.rollouts", problem, "set it to transformers"))
        on = device()
        self._on_cpu = on.type == "cpu"
        self._folder = Path(tempfile.mkdtemp(prefix="easydistill-student-"))
        _write_shape(student, self._folder)
        options: dict[str, Any] = {
            "model": str(self._folder),
            "load_format": "dummy",
            "dtype": str(choose_dtype("auto", on)).removeprefix("torch."),
            "trust_remote_code": trust_remote_code,
            "enforce_eager": self._on_cpu,
            "max_model_len": student.limits.within(longest),
            "max_num_seqs": MOST_AT_ONCE,
            # Its entries would be those of earlier weights.
            "enable_prefix_caching": False,
            # Not the model's own penalties and temperature.
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        if not self._on_cpu:
            options["gpu_memory_utilization"] = memory_share
        self._longest = int(options["max_model_len"])
        prepare_environment(on_cpu=self._on_cpu)
        # vLLM seeds the global generators when it starts.
        state = RandomState.now()
        try:
            with _explained():
                self._llm = _engine_here(options)
        except ModelError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            state.restore()

    @torch.no_grad()
    def load(self, model: Any) -> None:
        """Take over the present weights of `model`, adapters included."""
        logger = logging.getLogger("vllm")
        level = logger.level
        # It warns of each layer without weights of its own, such as rotary embeddings.
        logger.setLevel(logging.ERROR)
        try:
            with _explained():
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": plain_weights(model)})
        finally:
            logger.setLevel(level)

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
        """As `roll_out`, from the weights that were loaded last."""
        from vllm import SamplingParams

        assert not any(images), "the job refuses vLLM for students that see images"

        def sampling(index: int) -> Any:
            name, ids = prompts[index]
            number = index if numbers is None else numbers[index]
            return SamplingParams(
                temperature=temperature,
                max_tokens=min(max_new_tokens, self._longest - len(ids)),
                stop_token_ids=sorted(eos_ids),
                # Only these end an answer, whatever the tokenizer says.
                ignore_eos=True,
                seed=None if self._on_cpu else row_seed(seed, f"{step}:{number}:{name}"),
                detokenize=False,
            )

        state = RandomState.now()
        torch.manual_seed(row_seed(seed, f"{step}:vllm"))
        with torch.autocast(device().type, enabled=False), _explained():
            outputs = self._llm.generate(
                [{"prompt_token_ids": ids} for _, ids in prompts],
                [sampling(index) for index in range(len(prompts))],
                use_tqdm=False,
            )
        state.restore()
        return [
            _written(prompt, list(output.outputs[0].token_ids), eos_ids)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def close(self) -> None:
        """End the engine; its memory is free for what follows."""
        from vllm.distributed import cleanup_dist_env_and_memory

        del self._llm
        cleanup_dist_env_and_memory()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What vLLM cannot do, in words."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"vLLM cannot run the student: {reason}\n    → set on_policy.rollouts=transformers") from error


def _written(prompt: tuple[str, list[int]], completion: list[int], eos_ids: frozenset[int]) -> Written:
    return Written(*prompt, completion, rolled=True, ended=bool(completion) and completion[-1] in eos_ids)


def _write_shape(student: Student, folder: Path) -> None:
    """A model's directory without weights."""
    owner = student.model.get_base_model() if hasattr(student.model, "get_base_model") else student.model
    config = copy.deepcopy(owner.config)
    config.architectures = [type(owner).__name__]
    config.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _in_this_process() -> Iterator[None]:
    """An engine that is started inside runs in this process: weights are handed over in memory."""
    from vllm import envs

    before = os.environ.get(IN_PROCESS)
    os.environ[IN_PROCESS] = "0"
    # Kept from an engine that ran here before.
    envs.disable_envs_cache()
    try:
        yield
    finally:
        if before is None:
            del os.environ[IN_PROCESS]
        else:
            os.environ[IN_PROCESS] = before


def _engine_here(options: dict[str, Any]) -> Any:
    try:
        from vllm import LLM
    except ImportError:
        raise MissingExtra("vllm", "on_policy.rollouts=vllm") from None
    with _in_this_process():
        return LLM(**options)


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights of a causal language model by the names in its files, adapters added in.

    The model itself stays as it is: merging adapters into it and out again would round its weights.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = {name: layer for name, layer in base.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, value in base.named_parameters():
        if ".lora_" in name:
            continue
        owner, inside, kind = name.partition(".base_layer.")
        if not inside:
            yield name, value.detach()
            continue
        weight = value.detach()
        if kind == "weight":
            for adapter in adapted[owner].active_adapters:
                weight = weight + adapted[owner].get_delta_weight(adapter).to(weight)
        yield f"{owner}.{kind}", weight
