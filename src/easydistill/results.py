"""The outcome of a run, read from its directory: rows, rejected rows, figures, the student.

Files are read when they are asked for, so a result costs nothing to keep. Rows and figures are plain dicts; `frame()`
makes a pandas table of them, where pandas is installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.data.manifest import Manifest
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.stage import REJECTED
from easydistill.errors import EXIT_FAILED, DataError, EasyDistillError

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

_ROWS = ("labeled.parquet", "replies.jsonl", "answers.jsonl")
"""Files of rows that stages write, the best first where a stage has several."""


class NoPandas(EasyDistillError, ImportError):
    """`frame()` needs pandas, which is not installed."""

    def __init__(self) -> None:
        super().__init__("frame() needs pandas, which is not installed\n    → pip install pandas; list(…) gives dicts")


class Rows:
    """Rows of a file, as dicts, read anew each time that they are gone through."""

    def __init__(self, read: Callable[[], Iterator[dict[str, Any]]], title: str) -> None:
        self._read, self._title = read, title

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        Raises:
            DataError: the file is gone, or cannot be read.
        """
        return self._read()

    def __len__(self) -> int:
        """Their number; reads the file."""
        return sum(1 for _ in self._read())

    def __bool__(self) -> bool:
        return next(self._read(), None) is not None

    def head(self, count: int = 5) -> list[dict[str, Any]]:
        """The first rows; reads no more than these."""
        rows = self._read()
        return [row for _, row in zip(range(count), rows, strict=False)]

    def frame(self) -> pandas.DataFrame:
        """All rows as a table of pandas.

        Raises:
            NoPandas: pandas is not installed.
        """
        return frame_of(list(self._read()))

    def __repr__(self) -> str:
        return f"<{self._title}>"

    def _repr_html_(self) -> str:
        from easydistill.results_html import rows_html

        return rows_html(self._title, self.head())


def frame_of(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Dicts as a table of pandas.

    Raises:
        NoPandas: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise NoPandas from None
    return pandas.DataFrame(rows)


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run. In a notebook it shows itself as a small table."""

    run_directory: Path
    exit_code: int
    """0, or 3 if more rows were rejected than `dataset.max_rejected_share` allows. Of a run that was opened and has not
    ended, 1."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """`before` and `after`: metric → value."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The contents of `summary.json`."""
    fresh: bool = True
    """False if everything was already done."""
    leads: bool = True
    """False for a command that has helped another one's run."""

    @classmethod
    def of(cls, directory: str | Path) -> RunResult:
        """The result of a run that this process need not have made; it may not have ended.

        Raises:
            DataError: no run is there.
        """
        run = RunDirectory(Path(directory))
        summary = run.read_summary()
        if summary is None:
            raise DataError(f"{directory}: no run is here (no summary.json)\n    → name a run directory, e.g. runs/kd")
        code = summary["exit_code"]
        return cls(run.path, EXIT_FAILED if code is None else int(code), held_out(summary), summary, fresh=False)

    @property
    def student(self) -> Path:
        """Directory of the trained student; there is none if the job trains none."""
        return self.run_directory / "student"

    @property
    def report(self) -> Path:
        """The report, as a page."""
        return self.run_directory / "report.html"

    @property
    def status(self) -> str:
        """`done`, `failed`, `interrupted` or `running`."""
        return str(self.summary.get("status", ""))

    @property
    def cost(self) -> float | None:
        """What models behind APIs have cost, in the currency of the prices; None if none was asked, or a price is not
        known."""
        from easydistill.report.costs import total
        from easydistill.report.synthesis import bills_of

        stages = [stage for run in (self, *self.jobs.values()) for stage in run.summary.get("stages", {}).values()]
        bills = [bill for stage in stages for bill in bills_of(stage["metrics"])]
        return total(bills, "cost") if bills else None

    @cached_property
    def jobs(self) -> dict[str, RunResult]:
        """The results of a pipeline's jobs, by name; empty for other jobs."""
        found = {}
        for path in RunDirectory(self.run_directory).stage_directories():
            if (path / "summary.json").is_file():
                found[path.name.partition("-")[2]] = RunResult.of(path)
        return found

    def rows(self, file: str | None = None) -> Rows:
        """The rows that the run has made: those of its last stage that wrote some.

        Args:
            file: the name of another file of rows that a stage has written, such as `labeled.parquet`.

        Raises:
            DataError: no stage has written rows.
        """
        path = self._file(file)
        return Rows(lambda: _rows_of(path), f"rows of {path}")

    def rejected(self) -> Rows:
        """The rows that were rejected, with `stage`, `reason` and `detail`; see `docs/runs.md`."""
        files = [path / REJECTED for path in self._stages() if (path / REJECTED).is_file()]
        return Rows(lambda: (row for path in files for row in _lines(path)), f"rejected rows of {self.run_directory}")

    def steps(self) -> Rows:
        """The figures of training, a dict for each line of `metrics.jsonl`."""
        files = [
            run / "metrics.jsonl" for run in (self.run_directory, *(job.run_directory for job in self.jobs.values()))
        ]
        return Rows(
            lambda: (row for path in files if path.is_file() for row in _lines(path)),
            f"training figures of {self.run_directory}",
        )

    def compared(self) -> list[dict[str, Any]]:
        """The held-out metrics, a dict for each: `metric`, `before`, `after`, `change`."""
        before, after = self.metrics.get("before") or {}, self.metrics.get("after") or {}
        return [
            {"metric": name, "before": before.get(name), "after": value, "change": _change(before.get(name), value)}
            for name, value in after.items()
        ]

    def frame(self) -> pandas.DataFrame:
        """The held-out metrics as a table of pandas; `rows()`, `rejected()` and `steps()` have a `frame` of their own.

        Raises:
            NoPandas: pandas is not installed.
        """
        return frame_of(self.compared())

    def _repr_html_(self) -> str:
        from easydistill.results_html import result_html

        return result_html(self)

    def _stages(self) -> list[Path]:
        """The directories of its stages in order; of a pipeline, those of its jobs."""
        own = RunDirectory(self.run_directory).stage_directories()
        inner = [path for job in self.jobs.values() for path in job._stages()]
        return [*own, *inner]

    def _file(self, name: str | None) -> Path:
        """The last file of rows that a complete stage has written."""
        for stage in reversed(self._stages()):
            manifest = Manifest.read(stage)
            outputs = set(manifest.outputs) if manifest is not None else set()
            wanted = _ROWS if name is None else (name,)
            found = next((file for file in wanted if file in outputs), None)
            if found is not None:
                return stage / found
        what = "rows" if name is None else repr(name)
        raise DataError(
            f"{self.run_directory}: no stage has written {what}\n    → see `stages/` in it for what there is"
        )


def held_out(summary: dict[str, Any]) -> dict[str, Any]:
    """The held-out metrics in a summary: `before` and `after`."""
    return {name: summary["metrics"][name] for name in ("before", "after") if name in summary["metrics"]}


def _change(old: Any, new: Any) -> float | None:
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    return new - old if numbers else None


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    from easydistill.data.row_files import rows_of

    return (row for row in rows_of(path) if isinstance(row, dict))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
