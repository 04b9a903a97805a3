"""Scoring beside the teacher's own forward pass, in the shape of Qwen2.5-1.5B with random weights.

    full_forward      the body, and the logits of every token in the weights' dtype, slice by slice
    body              the same without logits
    a kind of signal  `score_rows` into a store on disk: inputs, body, logits of the learned tokens, extraction,
                      transfer, encoding, writing

all in tokens a second, in the very same batches. 60 % of the tokens are learned. The final norm is scaled so that the
distributions have the entropy of a language model's; `threshold, flat` is without, which keeps the most.

    python -m benchmarks.gpu.scoring [--seconds 95] [--tiny]

`--tiny` runs a small model on any device: it tests this script, and measures nothing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
LEARNED = 0.6
LOGIT_SPREAD = 5.0
"""Standard deviation of the logits; a distribution over 151,936 tokens then has an entropy of some nats."""


@dataclass(frozen=True)
class Setup:
    """Sizes of a measurement."""

    config: dict[str, int]
    row_tokens: int
    batch_tokens: int
    batches: int
    rounds: int
    """At least; more if there is time."""


FULL = Setup(
    {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
    },
    row_tokens=1024,
    batch_tokens=8192,
    batches=16,
    rounds=3,
)
TINY = Setup(
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 1000,
    },
    row_tokens=64,
    batch_tokens=256,
    batches=3,
    rounds=2,
)


def kinds() -> dict[str, Any]:
    from easydistill.signals.config import SampledSignals, ThresholdSignals, TopKSampledSignals, TopKSignals

    return {
        "threshold": ThresholdSignals(),
        "top_k": TopKSignals(kind="top_k"),
        "sampled": SampledSignals(kind="sampled"),
        "top_k_sampled": TopKSampledSignals(kind="top_k_sampled"),
    }


def random_model(setup: Setup, *, flat: bool) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from easydistill.models.loading import choose_dtype, device

    torch.manual_seed(SEED)
    # With tied weights, a model that was not trained would repeat its input.
    config = Qwen2Config(**setup.config, tie_word_embeddings=False, max_position_embeddings=4096)
    with torch.device(device()):
        model = Qwen2ForCausalLM(config).to(choose_dtype("auto", device())).eval()
    if not flat:
        # The norm's output has variance 1, so a logit's is that of a column of the output layer times the width.
        own = config.initializer_range * config.hidden_size**0.5
        with torch.no_grad():
            model.model.norm.weight.mul_(LOGIT_SPREAD / own)
    return model


def random_rows(setup: Setup, tokens: int) -> list[Any]:
    import numpy as np

    from easydistill.signals.score import RowToScore

    generator = np.random.default_rng(SEED)
    count = tokens // setup.row_tokens
    first = round(setup.row_tokens * (1 - LEARNED))
    learned = [at >= first for at in range(setup.row_tokens)]
    ids = generator.integers(0, setup.config["vocab_size"], (count, setup.row_tokens))
    return [RowToScore(f"row-{at}", ids[at], learned) for at in range(count)]


# --- what is compared ---------------------------------------------------------------------------------------


def forward(model: Any, rows: list[Any], batch_tokens: int, *, logits: bool) -> None:
    """The teacher's own forward pass in the batches of scoring."""
    import numpy as np
    import torch

    from easydistill.models.head import Head, body_of
    from easydistill.models.loading import device
    from easydistill.signals.shards import plan_shards

    head = Head.of(model)
    step = max(1, (1 << 30) // (head.weight_VD.element_size() * len(head.weight_VD)))
    with torch.inference_mode():
        for shard in plan_shards([row.length for row in rows], batch_tokens, 1 << 40):
            for batch in shard.batches:
                ids_BT = torch.from_numpy(np.stack([rows[index].ids for index in batch])).to(device())
                hidden = body_of(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
                for part_ND in hidden.flatten(0, 1).split(step) if logits else ():
                    head.logits(part_ND)


def score(model: Any, rows: list[Any], kind: Any, batch_tokens: int) -> dict[str, str]:
    """Score into a store; hashes of its files."""
    from easydistill.engine.interrupt import StopSignal
    from easydistill.signals.extract import SignalShape
    from easydistill.signals.score import ModelScorer
    from easydistill.signals.shards import score_rows

    config = kind.model_copy(update={"max_batch_tokens": batch_tokens})
    vocabulary = model.config.vocab_size
    codec = SignalShape.of(config, vocabulary).codec(vocabulary)
    with tempfile.TemporaryDirectory() as directory:
        score_rows(
            rows,
            config,
            codec,
            Path(directory),
            lambda: ModelScorer([], [1.0], config, vocabulary, 1.0, models=[model]),
            lambda count, tokens: None,
            StopSignal(),
        )
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(directory).iterdir()}


def timed(work: Callable[[], Any]) -> tuple[float, float | None]:
    """(seconds, peak memory in GiB)."""
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return seconds, round(torch.cuda.max_memory_allocated() / 2**30, 3) if on_gpu else None


def in_turn(work: dict[str, Callable[[], Any]], tokens: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of each, measured in turn for at least `rounds` rounds, and longer while there is time."""
    for warm_up in work.values():
        warm_up()
    speeds: dict[str, list[float]] = {name: [] for name in work}
    peaks: dict[str, float | None] = {}
    started = time.perf_counter()
    done = 0
    while done < rounds or (done < 25 and (time.perf_counter() - started) * (done + 1) / done < seconds):
        for name, one in work.items():
            took, peaks[name] = timed(one)
            speeds[name].append(tokens / took)
        done += 1
    return {
        name: {
            "tokens_per_second": round(statistics.median(values)),
            "min": round(min(values)),
            "max": round(max(values)),
            "rounds": len(values),
            "peak_gib": peaks[name],
        }
        for name, values in speeds.items()
    }


def compared(
    model: Any, rows: list[Any], chosen: dict[str, Any], batch_tokens: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """The forward pass, the body and kinds of signals, in batches of one size."""
    work: dict[str, Callable[[], Any]] = {
        "full_forward": lambda: forward(model, rows, batch_tokens, logits=True),
        "body": lambda: forward(model, rows, batch_tokens, logits=False),
        **{name: functools.partial(score, model, rows, kind, batch_tokens) for name, kind in chosen.items()},
    }
    found = in_turn(work, sum(len(row.ids) for row in rows), rounds, seconds)
    full = found["full_forward"]["tokens_per_second"]
    for name in chosen:
        found[name]["of_full_forward"] = round(found[name]["tokens_per_second"] / full, 4)
    return found


# --- what explains it ---------------------------------------------------------------------------------------


def parts(model: Any, rows: list[Any], kind: Any, batch_tokens: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of the parts of a batch, each alone, the median of some repeats."""
    import torch

    from easydistill.models.head import Head, body_of
    from easydistill.signals.block_statistics import BLOCK, block_statistics
    from easydistill.signals.extract import SignalShape, TeacherRows, lazy_signal, rows_at_once, slice_budget
    from easydistill.signals.score import Batch, ModelScorer
    from easydistill.signals.store import EncodedSample

    vocabulary = model.config.vocab_size
    shape = SignalShape.of(kind, vocabulary)
    some = rows[: max(1, batch_tokens // len(rows[0].ids))]
    head = Head.of(model)
    scorer = ModelScorer([], [1.0], kind, vocabulary, 1.0, models=[model])
    on = head.weight_VD.device

    with torch.inference_mode():
        batch = Batch.of(some, SEED, on)
        hidden_ND = body_of(model)(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        hidden_ND = hidden_ND.flatten(0, 1).index_select(0, batch.place_N)
        teacher = TeacherRows([hidden_ND], [head], [0.0])
        step = rows_at_once(teacher, shape, vocabulary, slice_budget(on))
        logits_NV = head.logits(hidden_ND[:step])[:, : vocabulary // BLOCK * BLOCK]
        scored = scorer.score(some)
        codec = shape.codec(vocabulary)
        work: dict[str, Callable[[], Any]] = {
            "inputs": lambda: Batch.of(some, SEED, on),
            "body": lambda: body_of(model)(input_ids=batch.ids_BT, use_cache=False),
            "logits_of_learned": lambda: [head.logits(part) for part in hidden_ND.split(step)],
            "statistics_of_one_slice": lambda: block_statistics(logits_NV),
            "logits_and_extraction": lambda: lazy_signal(
                teacher, batch.target_N, batch.uniform_N, shape, vocabulary, 1.0, step
            ),
            "host_only_encoding": lambda: [EncodedSample.of(sample, codec) for sample in scored],
        }
        found = {
            name: round(1000 * statistics.median(timed(one)[0] for _ in range(repeats)), 3)
            for name, one in work.items()
        }
    return {"rows_of_one_slice": min(step, len(hidden_ND)), "learned_tokens": len(hidden_ND), "ms": found}


def synchronisations(model: Any, rows: list[Any], kind: Any, batch_tokens: int) -> list[str]:
    """Where the host waits for the GPU between the start of a batch and its end."""
    import torch

    from easydistill.signals.score import ModelScorer

    scorer = ModelScorer([], [1.0], kind, model.config.vocab_size, 1.0, models=[model])
    some = rows[: max(1, batch_tokens // len(rows[0].ids))]
    scorer.score(some)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            finish = scorer.start(some)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    finish()
    return sorted(f"{Path(item.filename).name}:{item.lineno}" for item in caught)


def agreement(model: Any, rows: list[Any], kind: Any) -> dict[str, float]:
    """How far extraction on this device is from the reference on a CPU, on the same hidden states."""
    import numpy as np
    import torch

    from easydistill.models.head import Head, body_of
    from easydistill.signals.extract import SignalShape, TeacherRows, extract, lazy_signal
    from easydistill.signals.score import Batch

    vocabulary = model.config.vocab_size
    shape = SignalShape.of(kind, vocabulary)
    head = Head.of(model)
    with torch.inference_mode():
        batch = Batch.of(rows[:1], SEED, head.weight_VD.device)
        hidden = body_of(model)(input_ids=batch.ids_BT, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden_ND = hidden.index_select(0, batch.place_N)[:48].float()
        target_N, uniform_N = batch.target_N[:48], batch.uniform_N[:48]
        here = TeacherRows([hidden_ND], [head], [0.0])
        made = lazy_signal(here, target_N, uniform_N, shape, vocabulary, 1.0, 32).to_host()
        there = TeacherRows([hidden_ND.cpu()], [Head(head.weight_VD.float().cpu())], [0.0])
        wanted = extract(there, target_N.cpu(), uniform_N.cpu(), shape, vocabulary)
    width = wanted.head_ids_NK.shape[1]
    same = [
        set(ours[ours_on].tolist()) == set(theirs[theirs_on].tolist())
        for ours, ours_on, theirs, theirs_on in zip(
            made.draw_ids_ND, made.draw_counts_ND > 0, wanted.draw_ids_ND, wanted.draw_counts_ND > 0, strict=True
        )
    ]
    used = np.isfinite(wanted.head_logprobs_NK)
    difference = np.abs(made.head_logprobs_NK[:, :width][used] - wanted.head_logprobs_NK[used])
    return {
        "target_nats": float(np.abs(made.target_logprob_N - wanted.target_logprob_N).max()),
        "head_nats": float(difference.max(initial=0.0)),
        "same_head_tokens": float((made.head_ids_NK[:, :width] == wanted.head_ids_NK)[used].mean())
        if used.any()
        else 1,
        "rest": float(np.abs(np.exp(made.log_rest_N) - np.exp(wanted.log_rest_N)).max()),
        "same_draws": float(np.mean(same)),
    }


# --- all of it ----------------------------------------------------------------------------------------------


def measure(budget_seconds: float, tiny: bool = False) -> dict[str, Any]:
    """All measurements, within about `budget_seconds`."""
    import torch

    setup = TINY if tiny else FULL
    ends = time.monotonic() + budget_seconds
    model, chosen = random_model(setup, flat=False), kinds()
    size, tokens = setup.batch_tokens, setup.batches * setup.batch_tokens
    rows, default = random_rows(setup, tokens), chosen["threshold"]
    shared = (setup.rounds, budget_seconds * 0.2)
    sizes: dict[str, Any] = {}
    result: dict[str, Any] = {
        "shape": setup.config,
        "learned": LEARNED,
        "row_tokens": setup.row_tokens,
        "tokens_per_batch": sizes,
    }
    # What counts most comes first; the rest as the time goes.
    large = random_rows(setup, 2 * tokens)
    sizes[str(4 * size)] = compared(model, large, {"threshold": default}, 4 * size, *shared)

    def by_kind() -> None:
        sizes[str(size)] = compared(model, rows, chosen, size, *shared)

    def explained() -> None:
        result["parts"] = {name: parts(model, rows, kind, size, 3 if tiny else 10) for name, kind in chosen.items()}
        if torch.cuda.is_available():
            result["waits_while_starting"] = synchronisations(model, rows, default, size)

    def checked() -> None:
        result["agreement"] = {name: agreement(model, rows, kind) for name, kind in chosen.items()}
        result["same_bits_again"] = score(model, rows, default, size) == score(model, rows, default, size)

    def flat() -> None:
        flat_model = random_model(setup, flat=True)
        took = [timed(lambda: score(flat_model, rows, default, size))[0] for _ in range(setup.rounds + 1)][1:]
        result["threshold, flat"] = {"tokens_per_second": round(tokens / statistics.median(took))}

    for name, work in {"parts": explained, "kinds": by_kind, "agreement": checked, "flat": flat}.items():
        if time.monotonic() < ends:
            work()
        else:
            result.setdefault("left_out", []).append(name)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=95.0)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.seconds, arguments.tiny)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
