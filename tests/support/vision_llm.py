"""vLLM's engine, as far as scores of prompts with images go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Llm:
    """Gives log-probabilities of prompts as vLLM does, and reads the images of a prompt as it is told."""

    def __init__(self, reads: list[int]) -> None:
        self.reads = reads
        self.prompts: list[dict[str, Any]] = []

    def generate(self, prompts: list[dict[str, Any]], params: Any, use_tqdm: bool) -> list[SimpleNamespace]:
        self.prompts += prompts
        entries = [None] + [{token: SimpleNamespace(logprob=-1.0)} for token in self.reads[1:]]
        return [SimpleNamespace(prompt_token_ids=self.reads, prompt_logprobs=entries) for _ in prompts]
