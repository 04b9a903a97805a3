"""What happens in a run, told to a caller as it happens: `easydistill.run(config, on_progress=…)`.

Events come in order and one at a time, from the thread that the run is in; those of a stage that works in processes of
its own come from another thread, as its files grow. A listener that raises is not called again, and the run goes on:
only `KeyboardInterrupt` and `Interrupted` stop it, as Ctrl-C does.
"""

from __future__ import annotations

import contextlib
import json
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.engine.interrupt import StopSignal
from easydistill.errors import Interrupted

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class StageStarted:
    """A stage starts."""

    stage: str
    number: int
    """From 1, of `total` stages; of the stages of its job, in a pipeline."""
    total: int
    why: str = ""
    """Why it runs again, if it has run before: `again: training.learning_rate changed`."""


@dataclass(frozen=True)
class StageFinished:
    """A stage is complete."""

    stage: str
    number: int
    total: int
    skipped: bool
    """Whether it was complete already."""
    seconds: float
    """All the time that it has taken, in earlier runs too."""
    entered: int
    """Rows that it read, `left` rows that it made or learned from."""
    left: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Work that is counted goes on."""

    title: str
    """What is being done, as on the screen: `Labelling`."""
    done: int
    total: int
    unit: str
    """`rows`, `steps`, `tokens` …"""
    tokens: int = 0
    """Tokens written or read by this command so far."""
    cost: float | None = None
    """Spent so far, earlier runs included, in the currency of the prices; None without prices."""
    note: str = ""


@dataclass(frozen=True)
class TrainingStep:
    """Figures of a training, as in `metrics.jsonl`."""

    stage: str
    """The method: `sft`, `distil`, `policy` …, or what the figures are about: `heldout`."""
    step: int
    loss: float | None
    """None where these figures have no loss."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """All figures of the step, by name."""


@dataclass(frozen=True)
class Said:
    """A line for the user, as on the screen."""

    text: str


Event = StageStarted | StageFinished | Progress | TrainingStep | Said
OnProgress = Callable[[Event], object]


class Listener:
    """A caller's function, kept from harming the run.

    Args:
        warn: says that the function has failed, for the log and the screen.
    """

    def __init__(self, call: OnProgress, stop: StopSignal, warn: Callable[[str], None]) -> None:
        self._call, self._stop, self._warn = call, stop, warn
        self._lock = threading.RLock()
        self._failed = False
        self._busy = False

    def tell(self, event: Event) -> None:
        """Call the function, if it has not failed before."""
        with self._lock:
            # A function that prints through what is listened to would call itself.
            if self._failed or self._busy:
                return
            self._busy = True
            try:
                self._call(event)
            except (KeyboardInterrupt, Interrupted):
                self._stop.request()
            except Exception as error:
                self._failed = True
                text = f"on_progress has raised {type(error).__name__}: {error}; the run goes on without it"
                self._warn(f"{text}\n{traceback.format_exc()}")
            finally:
                self._busy = False


def step_of(line: Mapping[str, Any]) -> TrainingStep:
    """A line of `metrics.jsonl` as an event."""
    values = {name: value for name, value in line.items() if name not in ("time", "stage", "step")}
    loss = values.get("loss")
    return TrainingStep(str(line["stage"]), int(line.get("step", 0)), loss, values)


@contextlib.contextmanager
def following(path: Path | None, tell: Callable[[Event], None] | None) -> Iterator[None]:
    """Tell of the lines that other processes add to a `metrics.jsonl` meanwhile."""
    if path is None or tell is None:
        yield
        return
    ended = threading.Event()
    start = path.stat().st_size if path.is_file() else 0
    thread = threading.Thread(target=_follow, args=(path, start, tell, ended), daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(path: Path, at: int, tell: Callable[[Event], None], ended: threading.Event) -> None:
    last = False
    while not last:
        # What was written before the end is told.
        last = ended.wait(_POLL_SECONDS)
        if not path.is_file():
            continue
        with path.open("rb") as file:
            file.seek(at)
            whole, newline, _ = file.read().rpartition(b"\n")
        at += len(whole) + len(newline)
        for line in whole.splitlines():
            tell(step_of(json.loads(line)))
