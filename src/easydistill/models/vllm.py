"""What is set before vLLM is imported in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easydistill.engine.determinism import BATCH_INVARIANT
from easydistill.engine.run_directory import LOGGER
from easydistill.models.reference import sees_images

if TYPE_CHECKING:
    from easydistill.models.multimodal import Vision

CPU_KV_CACHE_GIB = "4"


def prepare_environment(*, on_cpu: bool) -> None:
    """Set the environment variables that vLLM reads, unless the user has set them."""
    import torch

    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB)
        # Run the engine in this process: a killed run must not leave an engine process behind.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    elif torch.are_deterministic_algorithms_enabled():
        # An answer then does not depend on which others are computed beside it, which is a matter of timing.
        os.environ[BATCH_INVARIANT] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def load_engine(engine: Callable[..., Any], reference: str, options: Mapping[str, Any]) -> Any:
    """vLLM's engine with its own class for a model, or with transformers' if its own does not know a vision tower.

    Args:
        engine: vLLM's class `LLM`.

    Raises:
        ValueError, RuntimeError, OSError: neither can be loaded.
    """
    try:
        return engine(**options)
    except (ValueError, RuntimeError) as error:
        if not sees_images(reference):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        LOGGER.warning("vLLM's class for %s fails (%s); it runs transformers' instead", reference, said)
    return engine(**options, model_impl="transformers")


def engine_prompt(vision: Vision, ids: list[int], digests: Sequence[str]) -> dict[str, Any]:
    """A prompt with images as vLLM's engine takes it.

    Args:
        ids: with one placeholder for each image, which the engine expands itself. Expanded ones it would expand again,
            without a word.
    """
    return {
        "prompt_token_ids": ids,
        "multi_modal_data": {"image": [vision.image(digest) for digest in digests]},
        # Its caches trust them; without them it reads an identifier in the image's own EXIF data first.
        "multi_modal_uuids": {"image": [vision.name(digest) for digest in digests]},
    }


def server_environment(*, on_cpu: bool) -> dict[str, str]:
    """The variables of a vLLM server that are not this process's."""
    import torch

    found = {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO")}
    if on_cpu:
        found["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_KV_CACHE_GIB)
        # A server's engine is a process of its own, whatever was set for an engine in this one.
        found["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    elif torch.are_deterministic_algorithms_enabled():
        found[BATCH_INVARIANT] = "1"
    return found


def tensor_parallel_size(*, on_cpu: bool) -> int:
    """Number of GPUs that share a model by default: all of them; vLLM needs 1 on a CPU."""
    import torch

    return 1 if on_cpu else max(1, torch.cuda.device_count())
