"""A fault server with the traffic rules of a real API: latency that varies, a token bucket, faults by chance.

A request beyond the bucket is refused at once with 429 and the time until the next token. What is admitted takes a
log-normal time and is answered, or, with a given probability, meets one of the faults of `fault_server`. Which latency
and which fault a request meets depends on the seed, its prompt and its attempt alone, not on the order of arrival.

    python -m tests.support.traffic_server --rate 100 --burst 100 --median 0.3 --sigma 0.5     prints the port
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.fault_server import FAULTS, Call, Running, Server, answer_to, run, status

ROOT = Path(__file__).resolve().parents[2]
SOON = status(429, {"message": "slow down"}, {"retry-after-ms": "50"})
CHANCE = (
    "rate_limit_hint", "server_error", "unavailable", "hang", "drop", "drop_body", "drop_stream", "end_early",
    "only_done", "error_event", "broken_event", "html", "truncated", "wrong_shape", "not_utf8", "not_utf8_stream",
    "nested", "error_in_200", "soon",
)  # fmt: skip
"""Faults drawn by chance; all of them heal. Those of streams drop the connection of a request without one."""
MOST_FAULTS = 5
"""Faults in a row that one prompt may meet."""


class TrafficServer(Server):
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        super().__init__(0.0, ["teacher-1"])

    def reset(self) -> None:
        super().reset()
        self.level, self.at = self.options.burst, time.monotonic()
        self.admitted = self.refused = self.faults = 0
        self.first = self.last = 0.0

    def stats(self) -> dict[str, Any]:
        names = ("admitted", "refused", "faults", "first", "last", "most_active", "attempts", "paid", "bodies", "times")
        return {name: getattr(self, name) for name in names}

    def missing(self) -> float:
        """Take a token; the seconds until there is one where there is none."""
        if self.options.rate == 0:
            return 0.0
        now = time.monotonic()
        self.level = min(self.options.burst, self.level + (now - self.at) * self.options.rate)
        self.at = now
        if self.level < 1:
            return float((1 - self.level) / self.options.rate)
        self.level -= 1
        return 0.0

    async def chat(self, call: Call) -> None:
        text = call.text
        self.attempts[text] += 1
        self.times.setdefault(text, []).append(time.time())
        self.bodies += [call.body] if len(self.bodies) < 50 else []
        wait = self.missing()
        if wait > 0:
            self.refused += 1
            call.json(429, {"error": {"message": "slow down"}}, {"retry-after-ms": str(math.ceil(1000 * wait))})
            return
        self.admitted += 1
        self.first, self.last = self.first or time.monotonic(), time.monotonic()
        chance = random.Random(f"{self.options.seed} {text} {self.attempts[text]}")
        refusal = self.refused_format(call.body)
        if refusal:
            call.json(400, {"error": {"message": f"response_format {refusal} is not available"}})
            return
        await asyncio.sleep(chance.lognormvariate(math.log(self.options.median), self.options.sigma))
        if self.attempts[text] <= MOST_FAULTS and chance.random() < self.options.faults:
            self.faults += 1
            name = chance.choice(CHANCE)
            await run(SOON if name == "soon" else FAULTS[name], call)
            return
        await call.answer({"content": answer_to(text)})

    def refused_format(self, body: dict[str, Any]) -> str | None:
        kinds = ["json_schema", "json_object"]
        kind = (body.get("response_format") or {}).get("type")
        return kind if kind in kinds[: self.options.refuse_formats] else None


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser()
    found.add_argument("--rate", type=float, default=0.0, help="tokens a second; 0: no limit")
    found.add_argument("--burst", type=float, default=1.0, help="tokens the bucket holds")
    found.add_argument("--median", type=float, default=0.01, help="seconds")
    found.add_argument("--sigma", type=float, default=0.5, help="of the latency's logarithm")
    found.add_argument("--faults", type=float, default=0.0, help="share of admitted requests that meet a fault")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--refuse-formats", type=int, default=0, help="1: no JSON schema; 2: no JSON object either")
    return found


@contextlib.contextmanager
def traffic(**options: float) -> Iterator[Running]:
    """Start a server in a process of its own."""
    command = [sys.executable, "-m", "tests.support.traffic_server"]
    command += [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield Running(int(process.stdout.readline()))
        finally:
            process.kill()


async def main() -> None:
    handle = TrafficServer(parser().parse_args()).handle
    async with await asyncio.start_server(handle, "127.0.0.1", 0, backlog=2048) as listening:
        print(listening.sockets[0].getsockname()[1], flush=True)
        await listening.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
