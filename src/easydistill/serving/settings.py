"""What `easydistill serve` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["auto", "transformers", "vllm"]
DTYPES = ("auto", "bfloat16", "float16", "float32")
ROWS = 32
"""Answers that are written at once by default, through transformers."""


@dataclass(frozen=True)
class ServeSettings:
    """The command's arguments."""

    model: str
    """A model reference, or a run directory, whose student is meant."""
    backend: Backend = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str | None = None
    """The model's name in requests; by default the reference as it was given."""
    api_key_env: str | None = None
    """The variable that holds the key which clients must send."""
    template: str | None = None
    """A chat template (a Jinja file) that replaces the model's own, or that it needs because it has none."""
    dtype: str = "auto"
    max_model_len: int | None = None
    """Longest prompt plus answer, in tokens; by default what the model's config allows."""
    max_concurrency: int | None = None
    """Answers written at once; others wait."""
    trust_remote_code: bool = False
    vllm_arguments: tuple[str, ...] = ()
    """Further arguments of vLLM's server."""

    @property
    def name(self) -> str:
        """The model's name in requests."""
        return self.served_name or self.model
