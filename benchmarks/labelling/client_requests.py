"""Requests a second of the API teacher against a loopback server, beside the bare openai SDK.

Both with the same number of requests under way, in an order drawn anew for every round, in this process; the server
has a process of its own. It answers at once, except in the last case: 256 workers, 0.2 s an answer. The bare SDK keeps
nothing; ours also looks for its key in every answer and journals it to disk, as the label stage does.

    python -m benchmarks.labelling.client_requests [--rounds 5] [--requests 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import save, spread
from tests.support.fault_server import running

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import GenerationRequest, Outcome
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.teachers.openai import OpenAITeacher

KEY = "sk-benchmark-0123456789abcdef"
CASES = {
    "whole": {"stream": False, "concurrency": 32, "latency": 0.0},
    "streaming": {"stream": True, "concurrency": 32, "latency": 0.0},
    "many_workers": {"stream": False, "concurrency": 256, "latency": 0.2},
}


def ours(base_url: str, prompts: Sequence[str], stream: bool, concurrency: int) -> float:
    config = ApiInferenceConfig(
        base_url=base_url, api_key=KEY, max_concurrency=concurrency, stream=stream, model="teacher-1"
    )
    redactor = Redactor()
    redactor.register_config(config)
    teacher = OpenAITeacher(config, redactor)
    requests = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in prompts]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl") as journal:

        def record(outcomes: Sequence[Outcome]) -> None:
            journal.append(*(outcome.as_record() for outcome in outcomes))

        started = time.perf_counter()
        teacher.generate(requests, journal.__contains__, record, StopSignal())
        seconds = time.perf_counter() - started
        assert len(journal) == len(prompts)
    return len(prompts) / seconds


def bare(base_url: str, prompts: Sequence[str], stream: bool, concurrency: int) -> float:
    import openai

    answers: list[str | None] = []

    async def ask() -> None:
        waiting = iter(prompts)
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:

            async def worker() -> None:
                for text in waiting:
                    messages: Any = [{"role": "user", "content": text}]
                    reply: Any = await client.chat.completions.create(
                        model="teacher-1", messages=messages, max_tokens=512, stream=stream
                    )
                    if stream:
                        parts = [c.choices[0].delta.content or "" async for c in reply if c.choices]
                        answers.append("".join(parts))
                    else:
                        answers.append(reply.choices[0].message.content)

            await asyncio.gather(*(worker() for _ in range(concurrency)))

    started = time.perf_counter()
    asyncio.run(ask())
    seconds = time.perf_counter() - started
    assert len(answers) == len(prompts)
    return len(prompts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    order = random.Random(arguments.seed)
    result: dict[str, Any] = {"httpx2": version("httpx2"), "requests": arguments.requests, "seed": arguments.seed}
    for case, values in CASES.items():
        stream, concurrency, latency = bool(values["stream"]), int(values["concurrency"]), float(values["latency"])
        sides = [("ours", ours), ("bare_sdk", bare)]
        rates: dict[str, list[float]] = {name: [] for name, _ in sides}
        with running(latency) as server:
            for number in range(arguments.rounds + 1):
                for name, side in order.sample(sides, 2):
                    server.reset()
                    prompts = [f"{name} {number} {n}" for n in range(arguments.requests)]
                    rate = side(server.base_url, prompts, stream, concurrency)
                    assert server.stats()["paid"] == dict.fromkeys(prompts, 1)
                    if number:  # the first round warms up
                        rates[name].append(rate)
                        print(f"{case} {name}: {rate:.0f} requests/s", flush=True)
        result[case] = {**values, **{name: {"requests_per_second": spread(values)} for name, values in rates.items()}}
    print(save(Path(__file__).parent, "client_requests", result))


if __name__ == "__main__":
    main()
