"""What a run shows while it works, `metrics.jsonl`, and `progress.jsonl`.

On a terminal: rich progress bars with rows, tokens per second and the time left. Elsewhere (a log file, CI): an
occasional line. `progress.jsonl` has the rates of work that is counted in rows, and what it has cost so far.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from easydistill.engine.events import Event, Progress, Said, step_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_SECONDS = 10.0
EVENT_SECONDS = 0.2
"""Least time between two events of a task."""
PROGRESS = "progress.jsonl"
"""Beside `metrics.jsonl`. Its `step` is a number of finished rows."""


class Task:
    """One progress bar: a known number of units, with a count of tokens beside it."""

    def __init__(self, reporter: Reporter, title: str, total: int, done: int, unit: str) -> None:
        self._reporter = reporter
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self._first = done
        self._started = self._printed = time.monotonic()
        self._written = (done, 0, self._started)
        """Units, tokens and time at the last line of `progress.jsonl`."""
        self.tokens = 0
        self.note = ""
        self.figures: Callable[[], Mapping[str, Any]] = dict
        """More figures for `progress.jsonl`, such as what was spent."""
        self._bar: Bar | None = None
        self._bar_id: TaskID | None = None
        self._told = -math.inf

    def advance(self, units: int = 1, tokens: int = 0, note: str | None = None) -> None:
        """Count finished units, with an optional short note."""
        self.done += units
        self.tokens += tokens
        if note is not None:
            self.note = note
        if time.monotonic() - self._written[2] > LINE_SECONDS:
            self.write()
        if self._reporter.tell is not None and time.monotonic() - self._told > EVENT_SECONDS:
            self.tell()
        if self._bar is not None and self._bar_id is not None:
            self._bar.update(self._bar_id, completed=self.done, rate=self._rate(), note=self.note)
        elif time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            self._reporter.say(f"  {self.line()}")

    def write(self) -> None:
        """Add a line to `progress.jsonl`, if more was done since the last one. Optimiser steps have other lines."""
        done, tokens, at = self._written
        now = time.monotonic()
        if self.done <= done or self.unit == "steps":
            return
        self._written = (self.done, self.tokens, now)
        seconds = max(now - at, 1e-3)
        rates = {f"{self.unit}_per_second": round((self.done - done) / seconds, 4)}
        if self.tokens > tokens:
            rates["tokens_per_second"] = round((self.tokens - tokens) / seconds, 2)
        spent = {name: value for name, value in self.figures().items() if value is not None}
        counted = {self.unit: self.done, "total": self.total}
        self._reporter.progress(self.title, self.done, {**counted, **rates, **spent})

    def tell(self) -> None:
        """Tell a listener how far it is."""
        if self._reporter.tell is not None:
            self._told = time.monotonic()
            cost = self.figures().get("cost")
            self._reporter.tell(Progress(self.title, self.done, self.total, self.unit, self.tokens, cost, self.note))

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._started
        return f"{self.tokens / elapsed:,.0f} tok/s" if self.tokens and elapsed > 0.5 else ""

    def line(self) -> str:
        """The progress in words."""
        elapsed = time.monotonic() - self._started
        fresh = self.done - self._first
        left = (self.total - self.done) * elapsed / fresh if fresh else None
        parts = [f"{self.title}: {self.done:,}/{self.total:,} {self.unit}", self._rate(), self.note]
        if left is not None and self.done < self.total:
            parts.append(f"about {duration(left)} left")
        return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """A number of seconds in readable form."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Reporter:
    """Screen output and `metrics.jsonl` of one run."""

    def __init__(
        self,
        metrics_path: Path | None,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        tell: Callable[[Event], None] | None = None,
    ) -> None:
        self.tell = tell
        """Tells a caller what happens; None if nobody listens."""
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._metrics_path = metrics_path
        self._finished: dict[str, int] = {}
        """Units of finished tasks, by their title: a stage may have several of one."""
        self._console: Console | None = None
        if not quiet and self._stream.isatty():
            from rich.console import Console

            self._console = Console(file=self._stream)

    @property
    def metrics_path(self) -> Path | None:
        return self._metrics_path

    @property
    def quiet(self) -> bool:
        return self._quiet

    def writing_to(self, metrics_path: Path) -> Reporter:
        """A reporter for the same screen and another `metrics.jsonl`."""
        return Reporter(metrics_path, quiet=self._quiet, stream=self._stream, tell=self.tell)

    def say(self, text: str) -> None:
        """Print a line for the user."""
        if self.tell is not None:
            self.tell(Said(text))
        if self._quiet:
            return
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    @contextlib.contextmanager
    def task(self, title: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Task]:
        """Show progress over `total` units, of which an earlier attempt finished `done`."""
        task = Task(self, title, total, done, unit)
        task.tell()
        if self._console is None:
            if done:
                self.say(f"  {title}: {done:,} of {total:,} {unit} already done")
            yield task
            self._finish(task)
            self.say(f"  {task.line()}")
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bar(*columns, console=self._console) as bar:
            task._bar = bar
            task._bar_id = bar.add_task(f"  {title}", total=total, completed=done, rate="", note="")
            yield task
            self._finish(task)

    def metric(self, stage: str, **values: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        if self._metrics_path is not None:
            line = _append(self._metrics_path, stage, values)
            if self.tell is not None:
                self.tell(step_of(line))

    def progress(self, title: str, done: int, values: Mapping[str, Any]) -> None:
        """Append one line to `progress.jsonl`. Its step counts on over the tasks of one title."""
        if self._metrics_path is not None:
            step = self._finished.get(title, 0) + done
            stage = title.lower().replace(" ", "_").replace("/", "_")
            _append(self._metrics_path.with_name(PROGRESS), stage, {"step": step, **values})

    def _finish(self, task: Task) -> None:
        task.write()
        task.tell()
        self._finished[task.title] = self._finished.get(task.title, 0) + task.total


def _append(path: Path, stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Add a line, and return it."""
    # JSON has no NaN and no infinity.
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    line = {"time": round(time.time(), 3), "stage": stage, **finite}
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line, ensure_ascii=False) + "\n")
    return line
