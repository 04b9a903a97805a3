"""Tokens per second of a teacher in one and in several workers of this machine, and in the actors of a Ray cluster.

All arms answer the same prompts with the same model in the same batches, with one thread in each process, and journal
the answers; a second arm's answers are compared with the first's. Loading is not measured: the clock starts when every
worker has a model. Arms run in turn, every second round in the opposite order.

    python -m benchmarks.workers.run [--workers 2] [--prompts 256] [--tokens 64] [--repeats 3] [--model MODEL] [--ray]
"""

from __future__ import annotations

import os

# Before torch is loaded: here, and in what this process starts.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import save, spread
from tests.conftest import TEACHER

from easydistill.config.inference import AnyLocalOptions, RayInferenceConfig, TransformersInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome, Teacher
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import StageContext
from easydistill.teachers import plan_teacher
from easydistill.teachers.pool.teacher import PooledTeacher

WORDS = ("river", "bridge", "copper", "market", "winter", "letter", "garden", "engine", "silver", "harbour", "music")


def requests(count: int, name: str) -> list[GenerationRequest]:
    """Prompts of several lengths, always the same."""
    draw = random.Random(0)
    texts = [f"Write about {' and '.join(draw.choices(WORDS, k=draw.randint(2, 24)))}." for _ in range(count)]
    return [GenerationRequest(f"{name}-{n}", ({"role": "user", "content": text},)) for n, text in enumerate(texts)]


def config_of(arm: str, workers: int, arguments: argparse.Namespace) -> AnyLocalOptions:
    settings: dict[str, Any] = {"max_new_tokens": arguments.tokens, "batch_size": arguments.batch, "temperature": 0.8}
    if arm == "ray":
        return RayInferenceConfig(backend="ray", engine="transformers", num_actors=workers, **settings)
    return TransformersInferenceConfig(
        backend="transformers", workers=workers if arm == "processes" else None, **settings
    )


def answer(teacher: Teacher, asked: Sequence[GenerationRequest], journal: Path) -> tuple[float, int, dict[str, Any]]:
    """Seconds, tokens and texts of the answers."""
    texts: dict[str, Any] = {}
    tokens = 0
    with Journal(journal) as kept:

        def record(outcomes: Sequence[Outcome]) -> None:
            nonlocal tokens
            kept.append(*(outcome.as_record() for outcome in outcomes))
            for outcome in outcomes:
                assert isinstance(outcome, Completion)
                tokens += outcome.completion_tokens
                texts[outcome.key] = outcome.text

        started = time.perf_counter()
        teacher.generate(asked, kept.__contains__, record, StopSignal())
        return time.perf_counter() - started, tokens, texts


def measure(arm: str, workers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = StageContext(folder, folder, {}, "", StopSignal(), Reporter(None, quiet=True), Redactor())
        teacher = plan_teacher(config_of(arm, workers, arguments), arguments.model).make(context)
        try:
            started = time.perf_counter()
            warm_up(teacher, workers, folder)
            loaded = time.perf_counter() - started
            seconds, tokens, texts = answer(teacher, requests(arguments.prompts, "p"), folder / "journal.jsonl")
        finally:
            teacher.close()
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "start": loaded,
        "texts": texts,
    }


def warm_up(teacher: Teacher, workers: int, folder: Path) -> None:
    """Return when every worker has a model."""
    for number in range(1_000):
        answer(teacher, requests(workers, f"warm{number}"), folder / "warm.jsonl")
        if not isinstance(teacher, PooledTeacher) or len(teacher._ready) == workers:
            return
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=TEACHER)
    parser.add_argument("--ray", action="store_true", help="actors too")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    arms = [("in process", 1), ("processes", 1), ("processes", arguments.workers)]
    arms += [("ray", 1), ("ray", arguments.workers)] if arguments.ray else []
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {arm: [] for arm in arms}
    expected: dict[str, Any] | None = None
    for repeat in range(arguments.repeats):
        for arm in arms if repeat % 2 == 0 else reversed(arms):
            found = measure(*arm, arguments)
            texts = found.pop("texts")
            expected = expected or texts
            found["same_answers"] = texts == expected
            found["load_average"] = os.getloadavg()[0]
            runs[arm].append(found)
            print(f"{repeat + 1}: {arm[0]}, {arm[1]}: {found}", file=sys.stderr, flush=True)
    result = summary(arguments, runs)
    if arguments.no_save:
        print(json.dumps(result, indent=2))
    else:
        print(save(Path(__file__).parent, "workers", result))


def summary(arguments: argparse.Namespace, runs: dict[tuple[str, int], list[dict[str, Any]]]) -> dict[str, Any]:
    speed = {arm: spread([run["tokens_per_second"] for run in found]) for arm, found in runs.items()}
    kinds = sorted({kind for kind, count in runs if count > 1})
    return {
        "model": arguments.model if arguments.model == TEACHER else Path(arguments.model).name,
        "prompts": arguments.prompts,
        "longest_answer": arguments.tokens,
        "rows_per_batch": arguments.batch,
        "threads_per_process": 1,
        "tokens_per_second": {f"{kind}, {count}": found for (kind, count), found in speed.items()},
        "ratio": {
            f"{kind}: {arguments.workers} to 1": speed[kind, arguments.workers]["median"] / speed[kind, 1]["median"]
            for kind in kinds
        },
        "runs": {f"{kind}, {count}": found for (kind, count), found in runs.items()},
    }


if __name__ == "__main__":
    main()
