"""Tokens a second of 260 short answers: ours, with its steps recorded and not, `model.generate`, and vLLM.

Models: the shape of Qwen2.5-0.5B with random weights, and the model in the folder that EASYDISTILL_BENCH_WEIGHTS names,
which answers the quickstart's prompts and ends its answers itself. All arms get batches of the same rows, but for vLLM,
which forms its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from easydistill.data.batches import batches_by_length
from easydistill.models.decoding.graphs import DecodeGraphs, recordable
from easydistill.models.decoding.loop import decode
from easydistill.models.loading import choose_dtype, device, eos_ids
from easydistill.models.sampling import SeededSampler, generate_batch
from easydistill.teachers.transformers import MAX_BATCH_ROWS

WEIGHTS = "EASYDISTILL_BENCH_WEIGHTS"
PROMPTS = Path(__file__).parents[2] / "examples/quickstart/prompts.json"
BATCH_TOKENS, TEMPERATURE, SEED = 32_768, 0.7, 0
SHAPE = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4_864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
TINY = SHAPE | {
    "vocab_size": 1_000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip

Ids = list[int]
Arm = Callable[[], list[Ids]]
"""Answers the prompts."""


@dataclass
class Work:
    """A model and what it is asked."""

    model: Any
    folder: Path
    prompts: list[Ids]
    ends: frozenset[int]
    length: int
    random_weights: bool

    def batches(self) -> list[list[int]]:
        return batches_by_length([len(ids) for ids in self.prompts], MAX_BATCH_ROWS, BATCH_TOKENS, self.length)

    def asked(self, batch: Sequence[int]) -> list[Ids]:
        return [self.prompts[row] for row in batch]

    def cut(self, ids: Sequence[int]) -> Ids:
        """An answer up to its end token."""
        end = next((at + 1 for at, token in enumerate(ids) if token in self.ends), len(ids))
        return list(ids[:end])


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """Every arm on every model, while the budget lasts."""
    ends_at = time.monotonic() + budget_seconds
    with tempfile.TemporaryDirectory() as folder:
        works = {"random 0.5B shape": lambda: _random(Path(folder), tiny)}
        if path := os.environ.get(WEIGHTS):
            works["weights"] = lambda: _given(Path(path), tiny)
        return {name: _measured(make(), ends_at) for name, make in works.items()}


def _random(folder: Path, tiny: bool) -> Work:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen2Config(**(TINY if tiny else SHAPE))
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    on = device()
    model = Qwen2ForCausalLM(config).to(on, choose_dtype("auto", on)).eval()
    draws = random.Random(SEED)
    lengths = [draws.randint(35, 127) for _ in range(12 if tiny else 260)]
    prompts = [[draws.randrange(config.vocab_size) for _ in range(length)] for length in lengths]
    return Work(model, folder, prompts, frozenset(), 8 if tiny else 128, random_weights=True)


def _given(folder: Path, tiny: bool) -> Work:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on = device()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=choose_dtype("auto", on)).to(on).eval()
    texts = [row["instruction"] for row in json.loads(PROMPTS.read_text())][: 12 if tiny else 260]
    chats = [[{"role": "user", "content": text}] for text in texts]
    rendered = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
    ends = eos_ids(tokenizer, model.generation_config)
    return Work(model, folder, prompts, ends, 8 if tiny else 96, random_weights=False)


def _measured(work: Work, ends_at: float) -> dict[str, Any]:
    on_gpu = recordable(work.model)
    arms: dict[str, Arm] = {"ours": lambda: _ours(work), "ours, steps not recorded": lambda: _looped(work)}
    arms["generate"] = lambda: _generate(work)
    if on_gpu and importlib.util.find_spec("vllm"):
        arms["vllm"] = _Vllm(work)
    found: dict[str, Any] = {"prompts": len(work.prompts), "max_new_tokens": work.length, "arms": {}}
    answers: dict[str, list[Ids]] = {}
    for name, arm in arms.items():
        runs: list[dict[str, float]] = []
        # The first run loads kernels; the second is the figure.
        for _ in range(2):
            if time.monotonic() > ends_at:
                break
            before = answers.get(name)
            started = time.perf_counter()
            answers[name] = arm()
            seconds = time.perf_counter() - started
            tokens = sum(map(len, answers[name]))
            runs.append({"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds})
            if before is not None:
                found["arms"].setdefault(name, {})["same_answers_twice"] = before == answers[name]
        found["arms"].setdefault(name, {})["runs"] = runs
    if {"ours", "ours, steps not recorded"} <= set(answers):
        pairs = zip(answers["ours"], answers["ours, steps not recorded"], strict=True)
        found["rows_equal_recorded_or_not"] = sum(one == other for one, other in pairs)
    return found


def _ours(work: Work) -> list[Ids]:
    """As the teacher of this process answers."""
    found: dict[int, Ids] = {}
    graphs = DecodeGraphs()
    for batch in work.batches():
        sampler = SeededSampler(batch, temperature=TEMPERATURE)
        with torch.inference_mode():
            answers = generate_batch(work.model, work.asked(batch), work.ends, work.length, sampler, graphs=graphs)
        found |= {
            row: answer.ids + ([] if answer.end is None else [answer.end])
            for row, answer in zip(batch, answers, strict=True)
        }
    return [found[row] for row in range(len(work.prompts))]


def _looped(work: Work) -> list[Ids]:
    found: dict[int, Ids] = {}
    for batch in work.batches():
        sampler = SeededSampler(batch, temperature=TEMPERATURE)
        rows = decode(work.model, work.asked(batch), work.ends, work.length, sampler, None)
        found |= dict(zip(batch, rows, strict=True))
    return [found[row] for row in range(len(work.prompts))]


def _generate(work: Work) -> list[Ids]:
    from easydistill.models.decoding.batch import padded_left

    torch.manual_seed(SEED)
    found: dict[int, Ids] = {}
    for batch in work.batches():
        ids_BT, mask_BT = padded_left(work.asked(batch), 0, work.model.device)
        with torch.inference_mode():
            out_BT = work.model.generate(
                ids_BT,
                attention_mask=mask_BT,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                max_new_tokens=work.length,
                eos_token_id=sorted(work.ends) or None,
                pad_token_id=0,
            )
        rows = out_BT[:, ids_BT.shape[1] :].tolist()
        found |= {row: work.cut(ids) for row, ids in zip(batch, rows, strict=True)}
    return [found[row] for row in range(len(work.prompts))]


class _Vllm:
    """Answers by vLLM; the engine starts before the clock does."""

    def __init__(self, work: Work) -> None:
        from vllm import LLM

        self._work = work
        self._llm = LLM(
            str(work.folder),
            load_format="dummy" if work.random_weights else "auto",
            skip_tokenizer_init=True,
            max_model_len=1024,
            gpu_memory_utilization=0.5,
            enable_prefix_caching=False,
        )

    def __call__(self) -> list[Ids]:
        from vllm import SamplingParams

        work = self._work
        params = SamplingParams(
            temperature=TEMPERATURE,
            max_tokens=work.length,
            seed=SEED,
            stop_token_ids=sorted(work.ends),
            ignore_eos=not work.ends,
            detokenize=False,
        )
        out = self._llm.generate([{"prompt_token_ids": ids} for ids in work.prompts], params, use_tqdm=False)
        return [work.cut(list(one.outputs[0].token_ids)) for one in out]


if __name__ == "__main__":
    print(json.dumps(measure(180, tiny=not torch.cuda.is_available()), indent=2))
