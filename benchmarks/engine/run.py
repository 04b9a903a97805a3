"""The generation engine for big jobs: how much of what a server allows is used, and whether anything is lost.

A loopback server in a process of its own (`tests/support/traffic_server.py`) answers after log-normal times and refuses
what its token bucket has no token for. The API teacher, with its defaults, asks it and journals every outcome as the
label stage does: once with answers only, once where a fifth of the admitted requests meet faults of every kind. Used
is the share of the bucket's tokens (burst + rate × time, from the first admission to the last) that was taken; a
request that ends in a fault takes one, too. `bespokelabs-curator` is asked the same where `--curator` names a Python
that has it; it runs in that process, with the same limit on requests under way.

    python -m benchmarks.engine.run [--requests 20000] [--rate 150] [--seed 0] [--curator PYTHON] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import save
from tests.support.fault_server import Running
from tests.support.traffic_server import traffic

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Failure, GenerationRequest, Outcome
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.teachers.openai import OpenAITeacher

KEY = "sk-benchmark-0123456789abcdef"
MEDIAN_SECONDS, SIGMA, TIMEOUT = 0.3, 0.5, 10.0
CURATOR_SECONDS = 3600
CURATOR = Path(__file__).with_name("curator_client.py")


class Memory:
    """This process's resident memory, sampled every second."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._end.wait(1.0):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.megabytes.append(pages * 4096 / 2**20)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    def told(self) -> dict[str, Any]:
        """The samples, and by how much the last quarter's mean exceeds the second quarter's."""
        quarter = len(self.megabytes) // 4
        if not quarter:
            return {"megabytes": self.megabytes}
        second, last = self.megabytes[quarter : 2 * quarter], self.megabytes[-quarter:]
        growth = sum(last) / len(last) - sum(second) / len(second)
        return {"megabytes": [round(value, 1) for value in self.megabytes], "growth_megabytes": round(growth, 2)}


def ours(server: Running, prompts: list[str]) -> dict[str, Any]:
    """Ask with the defaults; what was recorded, and what it took."""
    config = ApiInferenceConfig(base_url=server.base_url, api_key=KEY, timeout=TIMEOUT, model="teacher-1")
    redactor = Redactor()
    redactor.register_config(config)
    teacher = OpenAITeacher(config, redactor)
    requests = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in prompts]
    reasons: dict[str, int] = {}
    twice = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "journal.jsonl") as journal,
        Memory() as memory,
    ):

        def record(outcomes: Any) -> None:
            nonlocal twice
            outcome: Outcome
            for outcome in outcomes:
                twice += outcome.key in journal
                journal.append(outcome.as_record())
                if isinstance(outcome, Failure):
                    reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1

        started = time.perf_counter()
        teacher.generate(requests, journal.__contains__, record, StopSignal())
        seconds = time.perf_counter() - started
        lost = sum(text not in journal for text in prompts)
    return {
        "seconds": round(seconds, 2), "lost": lost, "recorded_twice": twice, "failed_for_good": reasons,
        "spent": teacher.ledger.as_metrics(), "memory": memory.told(),
    }  # fmt: skip


def curator(python: str, server: Running, prompts: list[str]) -> dict[str, Any]:
    """The same through bespokelabs-curator, in its own interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"base_url": server.base_url, "prompts": prompts, "folder": folder, "timeout": TIMEOUT}
        try:
            done = subprocess.run(
                [python, str(CURATOR)],
                input=json.dumps(settings),
                capture_output=True,
                text=True,
                timeout=CURATOR_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {CURATOR_SECONDS} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-3:]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def told(server: Running, rate: float, burst: float, prompts: list[str]) -> dict[str, Any]:
    """What the server saw."""
    stats = server.stats()
    seconds = stats["last"] - stats["first"] or float("inf")  # a client that never asked
    paid = [stats["paid"].get(text, 0) for text in prompts]
    return {
        "admitted": stats["admitted"],
        "refused": stats["refused"],
        "faults": stats["faults"],
        "most_under_way": stats["most_active"],
        "answered": sum(count > 0 for count in paid),
        "paid_twice": sum(count > 1 for count in paid),
        "answers_per_second": round(sum(count > 0 for count in paid) / seconds, 2),
        "share_of_allowed": round(stats["admitted"] / (burst + rate * seconds), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=150.0, help="tokens a second")
    parser.add_argument("--burst", type=float, help="tokens the bucket holds; by default a second's worth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curator", help="a Python that has bespokelabs-curator")
    parser.add_argument("--json", action="store_true", help="print the result instead of saving it")
    arguments = parser.parse_args()
    burst = arguments.burst or arguments.rate
    result: dict[str, Any] = {
        "requests": arguments.requests, "rate_per_second": arguments.rate, "burst": burst, "seed": arguments.seed,
        "latency": {"median": MEDIAN_SECONDS, "sigma": SIGMA},
    }  # fmt: skip
    for case, faults in (("answers_only", 0.0), ("fifth_faults", 0.2)):
        result[case] = {}
        sides = ["ours", *(["curator"] if arguments.curator else [])]
        for side in sides:
            prompts = [f"{case} {n}" for n in range(arguments.requests)]
            with traffic(
                rate=arguments.rate, burst=burst, median=MEDIAN_SECONDS, sigma=SIGMA, faults=faults, seed=arguments.seed
            ) as server:
                client = ours(server, prompts) if side == "ours" else curator(arguments.curator, server, prompts)
                result[case][side] = {**client, "server": told(server, arguments.rate, burst, prompts)}
            if not arguments.json:
                print(case, side, {name: value for name, value in result[case][side].items() if name != "memory"})
    if arguments.json:
        print(json.dumps(result))
    else:
        print(save(Path(__file__).parent, "engine", result))


if __name__ == "__main__":
    main()
