"""Seconds a step and peak memory of distillation from stored signals, beside SFT and online distillation.

    kd        our trainer, the default signals (`threshold`), forward KL and cross-entropy half and half
    kd_top_k  the same with the 16 most probable tokens and a bucket
    sft       our trainer, cross-entropy alone
    trl_sft   TRL's SFTTrainer
    trl_gkd   TRL's GKDTrainer with the teacher in memory, on the given tokens (lambda 0): full logits of both models

Same student (15 layers, width 576), rows, number type and micro-batch as `benchmarks/sft_step`; a 30-layer teacher.
Two vocabularies: SmolLM2's 49,152 with its own weights, and Qwen2.5's 151,936 with random ones (a step costs what it
costs whatever the weights). Each run is a process of its own, in turn; the first steps are left out.

    python -m benchmarks.kd_step.run [--rounds 2] [--steps 6] [--vocabulary 49152 151936] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, ratios, run_worker, save, tell_steps
from benchmarks.sft_step.run import LAYERS, LENGTH, ROWS_PER_BATCH, SEED, TEACHER, WARM_UP, clock, ours, rows, trl

HERE = Path(__file__).parent
SIDES = ("sft", "kd", "kd_top_k", "trl_sft", "trl_gkd")
SMOLLM, QWEN = 49_152, 151_936


def model(layers: int, vocabulary: int) -> Any:
    """A student or teacher of that many layers, float32."""
    import torch

    from easydistill.config.models import FreshStudent, ModelsConfig, PrunedStudent
    from easydistill.models.student import build_student

    if vocabulary == SMOLLM:
        student: Any = PrunedStudent.model_validate({"from": TEACHER, "keep_layers": layers})
    else:
        shape = {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": layers,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "vocab_size": vocabulary,
        }
        student = FreshStudent(config=shape, tokenizer=TEACHER)
    return build_student(ModelsConfig(student=student), torch.float32)


def teach(kind: str, vocabulary: int, directory: Path) -> Any:
    """A function that lets the teacher score rows into a store, and gives the distillation that reads it."""
    import torch

    from easydistill.engine.interrupt import StopSignal
    from easydistill.losses.forward_kld import Config
    from easydistill.methods.distil.row_loss import Distillation
    from easydistill.methods.sft.batching import IGNORE, TokenRow
    from easydistill.models.head import Head, body_of
    from easydistill.signals.config import ThresholdSignals, TopKSignals
    from easydistill.signals.extract import SignalShape, TeacherRows, extract
    from easydistill.signals.score import RowToScore
    from easydistill.signals.shards import score_rows
    from easydistill.signals.store import ScoredSample, SignalStore, StoreManifest

    config: Any = ThresholdSignals() if kind == "kd" else TopKSignals(kind="top_k", k=16)
    shape = SignalShape.of(config, vocabulary)

    class Scorer:
        def __init__(self) -> None:
            self._model = model(30, vocabulary).model.to(torch.bfloat16)

        def score(self, batch: list[RowToScore]) -> list[ScoredSample]:
            import numpy as np

            found = []
            for row in batch:
                ids = torch.tensor([row.ids])
                keep = torch.tensor(row.learned)[1:]
                with torch.inference_mode():
                    hidden = body_of(self._model)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1][keep]
                    signal = extract(
                        TeacherRows([hidden], [Head.of(self._model)], [0.0]),
                        ids[0, 1:][keep],
                        torch.rand(len(hidden), dtype=torch.float64),
                        shape,
                        vocabulary,
                    )
                found.append(ScoredSample(row.id, row.ids, row.learned, signal, np.ones(len(signal), bool)))
            return found

        def close(self) -> None:
            del self._model

    def distillation(made: list[TokenRow]) -> Distillation:
        to_score = [RowToScore(row.id, row.ids, [label != IGNORE for label in row.labels()]) for row in made]
        codec = shape.codec(vocabulary)
        shards = score_rows(to_score, config, codec, directory, Scorer, lambda count, tokens: None, StopSignal())
        StoreManifest.of(directory, codec, {}, shards).write(directory)
        return Distillation(SignalStore(directory), Config(), 64 << 20)

    return distillation


def score_in_another_process(side: str, vocabulary: int, steps: int, directory: str) -> None:
    """Make the store without the teacher ever being in the measured process."""
    command = [sys.executable, "-m", "benchmarks.kd_step.run", "--score", directory, "--worker", side]
    command += ["--vocabulary", str(vocabulary), "--steps", str(steps)]
    subprocess.run(command, check=True, capture_output=True)


def trl_gkd(vocabulary: int, steps: int, directory: str) -> list[float]:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student, teacher = model(LAYERS, vocabulary), model(30, vocabulary)
    made = rows("equal", steps)
    config = GKDConfig(
        output_dir=directory,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_PER_BATCH,
        gradient_accumulation_steps=1,
        learning_rate=2e-5,
        optim="adamw_torch_fused",
        bf16=True,
        gradient_checkpointing=False,
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        max_length=LENGTH,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )

    def batch_of(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([item["ids"] for item in items])
        mask = torch.tensor([item["mask"] for item in items])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids.masked_fill(~mask, -100),
            "prompts": ids[:, :1],
            "prompt_attention_mask": torch.ones_like(ids[:, :1]),
        }

    timer = clock()
    trainer = GKDTrainer(
        model=student.model.train(),
        teacher_model=teacher.model.to(torch.bfloat16),
        args=config,
        data_collator=batch_of,
        train_dataset=Dataset.from_dict({"ids": [ids for ids, _ in made], "mask": [mask for _, mask in made]}),
        processing_class=student.tokenizer,
        callbacks=[timer],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return list(timer.seconds)


def worker(side: str, vocabulary: int, steps: int) -> None:
    def make() -> Any:
        return model(LAYERS, vocabulary)

    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "signals"
        if side in {"kd", "kd_top_k"}:
            store.mkdir()
            score_in_another_process(side, vocabulary, steps, str(store))
            seconds = ours("equal", steps, directory, make, teach(side, vocabulary, store))
        elif side == "sft":
            seconds = ours("equal", steps, directory, make)
        elif side == "trl_sft":
            seconds = trl("equal", steps, directory, make)
        else:
            seconds = trl_gkd(vocabulary, steps, directory)
    tell_steps(seconds[WARM_UP:])


def measure(side: str, vocabulary: int, steps: int) -> dict[str, Any]:
    own = ("--worker", side, "--steps", str(steps), "--vocabulary", str(vocabulary))
    return run_worker("benchmarks.kd_step.run", *own)


def compare(vocabulary: int, rounds: int, steps: int, show: Any) -> dict[str, Any]:
    sides = alternate(
        SIDES,
        rounds,
        lambda side: measure(side, vocabulary, steps),
        lambda side, run: show(vocabulary, side, run),
    )
    found = {
        f"{own}_over_{peer}": ratios(sides, own, peer)
        for own in ("kd", "kd_top_k")
        for peer in ("sft", "trl_sft", "trl_gkd")
    }
    show(vocabulary, found)
    return {"sides": sides, "ratios": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[SMOLLM, QWEN])
    parser.add_argument("--json", action="store_true", help="print the result alone")
    parser.add_argument("--worker", choices=SIDES)
    parser.add_argument("--score", metavar="DIRECTORY")
    arguments = parser.parse_args()
    if arguments.score:
        from easydistill.methods.sft.batching import TokenRow

        made = [TokenRow(str(n), ids, mask) for n, (ids, mask) in enumerate(rows("equal", arguments.steps))]
        teach(arguments.worker, arguments.vocabulary[0], Path(arguments.score))(made)
        return
    if arguments.worker:
        worker(arguments.worker, arguments.vocabulary[0], arguments.steps)
        return
    result: dict[str, Any] = {"seed": SEED, "layers": LAYERS, "rows": ROWS_PER_BATCH, "length": LENGTH}

    def show(*what: Any) -> None:
        if not arguments.json:
            print(*what, flush=True)

    for vocabulary in arguments.vocabulary:
        result[str(vocabulary)] = compare(vocabulary, arguments.rounds, arguments.steps, show)
    saved = save(HERE, "kd_step", result)
    print(json.dumps(result) if arguments.json else saved)


if __name__ == "__main__":
    main()
