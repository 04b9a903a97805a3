"""Settings of a teacher on this machine with which it takes less memory."""

from __future__ import annotations

from easydistill.config.inference import SamplingConfig, TransformersOptions


def smaller_batches(inference: SamplingConfig) -> list[str]:
    """Settings, a line each; none for a teacher elsewhere, and for an engine that divides its memory itself."""
    # A section for all local backends has the keys of each.
    if not isinstance(inference, TransformersOptions) or getattr(inference, "backend", "") == "vllm":
        return []
    if inference.batch_size is not None and inference.batch_size > 1:
        return [f"inference.batch_size={inference.batch_size // 2}"]
    return [f"inference.max_batch_tokens={max(1, inference.max_batch_tokens // 4)}"]
