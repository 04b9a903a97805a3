"""Requests a second of the API teacher against a loopback server that answers at once, beside the bare openai SDK.

Both with the same number of requests under way, alternating, in this process; the server has a process of its own.
The bare SDK keeps nothing; ours also journals every answer to disk as the label stage does.

    python -m benchmarks.labelling.client_requests [--rounds 5] [--requests 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import save, spread
from tests.support.fault_server import running

from easydistill.config.inference import ApiInferenceConfig
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.teachers.base import GenerationRequest, Outcome
from easydistill.teachers.openai import OpenAITeacher

CONCURRENCY = 32


def ours(base_url: str, prompts: Sequence[str], stream: bool) -> float:
    config = ApiInferenceConfig(base_url=base_url, max_concurrency=CONCURRENCY, stream=stream, model="teacher-1")
    teacher = OpenAITeacher(config, Redactor())
    requests = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in prompts]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl") as journal:

        def record(outcomes: Sequence[Outcome]) -> None:
            journal.append(*(outcome.as_record() for outcome in outcomes))

        started = time.perf_counter()
        teacher.generate(requests, journal.__contains__, record, StopSignal())
        seconds = time.perf_counter() - started
        assert len(journal) == len(prompts)
    return len(prompts) / seconds


def bare(base_url: str, prompts: Sequence[str], stream: bool) -> float:
    import openai

    answers: list[str | None] = []

    async def ask() -> None:
        waiting = iter(prompts)
        async with openai.AsyncOpenAI(base_url=base_url, api_key="EMPTY", max_retries=0) as client:

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

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    started = time.perf_counter()
    asyncio.run(ask())
    seconds = time.perf_counter() - started
    assert len(answers) == len(prompts)
    return len(prompts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"concurrency": CONCURRENCY, "requests": arguments.requests}
    with running() as server:
        for stream in (False, True):
            rates: dict[str, list[float]] = {"ours": [], "bare_sdk": []}
            for number in range(arguments.rounds + 1):
                for name, side in (("ours", ours), ("bare_sdk", bare)):
                    prompts = [f"{name} {stream} {number} {n}" for n in range(arguments.requests)]
                    rate = side(server.base_url, prompts, stream)
                    if number:  # the first round warms up
                        rates[name].append(rate)
                        print(f"stream={stream} {name}: {rate:.0f} requests/s", flush=True)
            result["streaming" if stream else "whole"] = {
                name: {"requests_per_second": spread(values)} for name, values in rates.items()
            }
    print(save(Path(__file__).parent, "client_requests", result))


if __name__ == "__main__":
    main()
