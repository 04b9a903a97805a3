"""A job in two processes, killed at a random moment and started again: does it end as if nothing had happened?

The moment depends on a seed and on how long the uninterrupted run took. What a killed command leaves behind is found by
a variable in its environment, which everything that it starts inherits.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from easydistill.data.files import hash_file
from tests.support.jobs import command, write_config

Victim = Literal["rank", "parent"]
During = Literal["run", "steps"]
"""Where the moment is drawn from: the time in which the victim runs, most of which is its start; or the steps of the
training."""
MARK = "KILL_TRIAL"
LIMIT = 30.0
"""Seconds after a kill within which nothing of the run may be left."""
RUN_LIMIT = 300.0
"""Seconds within which a run that nobody kills must end."""
KILLED = "killed by SIGKILL"
REMEDY = "run the same command again"

MakeJob = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Uninterrupted:
    """What a run comes to that nobody kills, and its times in seconds since its command was started."""

    figures: Mapping[str, Any]
    steps: int
    ranks_at: float
    """When all its ranks were there for the first time."""
    ended_at: float


def uninterrupted(folder: Path, make: MakeJob) -> Uninterrupted:
    """Run a job to its end."""
    folder.mkdir(parents=True)
    run = _Run(write_config(folder, make(folder)))
    ranks_at = run.wait_for_ranks(2)
    code = run.wait(RUN_LIMIT)
    assert code == 0, run.said()
    return Uninterrupted(figures(folder), steps_of(folder), ranks_at, run.seconds)


def figures(folder: Path) -> dict[str, Any]:
    """What must be the same: the student's weights, and each step's figures.

    A log has the steps between a checkpoint and a kill twice; they must be the same too.
    """
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    steps: dict[str, Any] = {}
    repeated = 0
    for line in lines:
        if line["stage"] in ("train", "preferences"):
            found = {name: value for name, value in line.items() if name not in ("time", "seconds_per_step")}
            kept = steps.setdefault(f"{line['stage']} {line['step']}", found)
            repeated += found != kept
    return {
        "weights": hash_file(folder / "run/student/model.safetensors"),
        "steps": steps,
        "repeated otherwise": repeated,
    }


def trial(
    folder: Path, make: MakeJob, whole: Uninterrupted, victim: Victim, during: During, seed: str
) -> dict[str, Any]:
    """Kill a run once, look at how it ends, and resume it; what was seen, with the list of what was wrong."""
    folder.mkdir(parents=True)
    config = write_config(folder, make(folder))
    draw = random.Random(seed)
    share, number = draw.random(), draw.randrange(2)
    run = _Run(config)
    if during == "steps":
        steps = int(share * whole.steps)
        run.sleep_while(lambda: steps_of(folder) < steps or not steps_of(folder))
    elif victim == "rank":
        # A moment of the time in which there are ranks.
        run.wait_for_ranks(number + 1)
        run.sleep(run.seconds + share * 0.95 * (whole.ended_at - whole.ranks_at))
    else:
        run.sleep(share * 0.95 * whole.ended_at)
    killed = run.kill_rank(number) if victim == "rank" else run.kill()
    told: dict[str, Any] = {"victim": victim, "during": during, "seed": seed, "share": round(share, 4)}
    told |= {"killed": killed, "moment": round(run.seconds, 2), "steps_before": steps_of(folder)}
    wrong = _ending(run, victim, number, killed, told)
    resumed = _Run(config)
    code = resumed.wait(RUN_LIMIT)
    told["resume_seconds"] = round(resumed.seconds, 2)
    if code != 0:
        wrong.append(f"resumed with exit code {code}: {resumed.said()[-2000:]}")
    elif (found := figures(folder)) != whole.figures:
        wrong += [f"another {name}" for name, value in whole.figures.items() if found[name] != value]
    if left := resumed.left():
        wrong.append(f"the resumed run left {left}")
    resumed.clear()
    return {**told, "wrong": wrong}


def _ending(run: _Run, victim: Victim, number: int, killed: bool, told: dict[str, Any]) -> list[str]:
    """Wait until nothing of a killed run is left; what was wrong about it."""
    since = time.monotonic()
    wrong: list[str] = []
    try:
        code = run.process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        wrong.append(f"the command had not ended after {LIMIT:.0f} s")
        code = None
    while (left := run.left()) and time.monotonic() - since < LIMIT:
        time.sleep(0.05)
    told |= {"exit_code": code, "seconds_to_end": round(time.monotonic() - since, 2)}
    if left:
        wrong.append(f"left after {LIMIT:.0f} s: {left}")
    run.clear()
    if not killed:
        return wrong if code == 0 else [*wrong, f"exit code {code} although nothing was killed"]
    expected = -signal.SIGKILL if victim == "parent" else 1
    said = run.said()
    if victim == "rank" and code == 0:
        # It had told its outcome already.
        told["outcome"] = "had finished"
    elif code != expected:
        wrong.append(f"exit code {code} instead of {expected}: {said[-2000:]}")
    elif victim == "rank" and not (f"process {number} of the stage was {KILLED}" in said and REMEDY in said):
        wrong.append(f"not told who was killed: {said[-2000:]}")
    if "Traceback" in said:
        wrong.append(f"a traceback: {said[-2000:]}")
    return wrong


def steps_of(folder: Path) -> int:
    """Steps that a training has logged."""
    path = folder / "run/metrics.jsonl"
    return sum('"train"' in line for line in path.read_text().splitlines()) if path.is_file() else 0


class _Run:
    """A command, and all processes that come of it."""

    def __init__(self, config: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._log = config.with_name(f"said-{self._mark[:8]}.log")
        self._started = time.monotonic()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", MARK: self._mark}
        with self._log.open("wb") as printed:
            self.process = subprocess.Popen(
                command("run", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=config.parent,
                env=environment,
            )
        self._ended: float | None = None

    @property
    def seconds(self) -> float:
        """Since the start, until the end."""
        return (self._ended or time.monotonic()) - self._started

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, limit: float) -> int:
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.clear()
            raise AssertionError(f"not ended after {limit:.0f} s: {self.said()[-2000:]}") from None
        self._ended = time.monotonic()
        return code

    def sleep(self, until: float) -> None:
        """Sleep until so many seconds after the start, or the run's end."""
        self.sleep_while(lambda: self.seconds < until)

    def sleep_while(self, condition: Callable[[], bool]) -> None:
        """Sleep as long as something is so, or until the run's end."""
        while self.process.poll() is None and condition():
            time.sleep(0.01)

    def wait_for_ranks(self, count: int) -> float:
        """Wait until there are as many ranks; when that was."""
        while len(self._ranks()) < count and self.process.poll() is None:
            if self.seconds > RUN_LIMIT:
                raise AssertionError(self.said())
            time.sleep(0.02)
        return self.seconds

    def kill(self) -> bool:
        """Kill the command; whether it was still there."""
        if self.process.poll() is not None:
            return False
        self.process.kill()
        return True

    def kill_rank(self, number: int) -> bool:
        """Kill a rank, once there is one: between two stages there is none for a moment."""
        while self.process.poll() is None:
            if (rank := self._ranks().get(number)) is not None:
                try:
                    os.kill(rank, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                return True
            time.sleep(0.005)
        return False

    def _ranks(self) -> dict[int, int]:
        """Process ids of the ranks that run, by number."""
        found = {}
        for process in self._processes():
            try:
                line = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                told = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"easydistill.rank" in line:
                number = next((int(item[5:]) for item in told if item.startswith(b"RANK=")), None)
                if number is not None:
                    found[number] = process
        return found

    def _processes(self) -> list[int]:
        """Everything that runs with this command's mark."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state not in "ZX" and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def left(self) -> list[str]:
        """What still runs."""
        lines = []
        for process in self._processes():
            try:
                line = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            lines.append(f"{process}: {line.strip()[:200]}")
        return lines

    def clear(self) -> None:
        """End what is left, so that it does not disturb the next."""
        for process in self._processes():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
