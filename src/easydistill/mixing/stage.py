"""The stage of the job `mix`: reads the inputs, takes rows of each, and writes them in one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from easydistill.asking.outputs import (
    LABELED_JSON,
    LABELED_PARQUET,
    labeled_path_issues,
    publish_samples,
    write_rejected,
)
from easydistill.data.images import ImageReader, ImageStore
from easydistill.data.manifest import RowCounts
from easydistill.data.reading import RowScan, at_most
from easydistill.data.records import Rejection, SameIds, Sample
from easydistill.data.row_files import rows_of
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.writing import UNWRITABLE, why_unwritable, write_paper_json, write_parquet
from easydistill.engine.checks import missing_folder, needs_extra, unreadable_rows
from easydistill.engine.stage import FORETOLD, Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue, DataError, EasyDistillError
from easydistill.mixing.allotment import Shortage, allot, known_total
from easydistill.mixing.config import InputConfig, MixtureConfig
from easydistill.mixing.drawing import Drawn
from easydistill.mixing.pool import CLASH, DUPLICATE, Pool
from easydistill.synthesis.operators.decontaminate import REASONS as CONTAMINATED
from easydistill.synthesis.operators.decontaminate import Benchmarks
from easydistill.synthesis.text import prompt_text

NOTED = 1000
"""Rows after which progress is told."""


class MixStage:
    """Rows of all inputs."""

    name = "mix"
    inputs: tuple[str, ...] = ()
    offers = (LABELED_PARQUET, LABELED_JSON)
    classifies = False

    def __init__(self, config: MixtureConfig) -> None:
        self._config = config

    def preflight(self) -> list[ConfigIssue]:
        issues = needs_extra("synth", "numpy")
        for name, config in self._config.inputs.items():
            issues += unreadable_rows(f"mix.inputs.{name}.path", config.path)
            issues += missing_folder(f"mix.inputs.{name}.image_folder", config.image_folder)
        if self._config.decontaminate is not None:
            issues += self._config.decontaminate.issues("mix.decontaminate")
        target = labeled_path_issues(self._config.labeled_path)
        return issues + [replace(issue, path="mix.labeled_path") for issue in target]

    def fingerprint(self) -> dict[str, Any]:
        return {
            "config": self._config.identity(),
            # A list: of rows that are in several inputs, the first input keeps its own.
            "inputs": [
                [name, hash_rows(config.path), config.reading_identity()]
                for name, config in self._config.inputs.items()
            ],
            "labeled_path": self._config.labeled_path,
        }

    def estimate(self, directory: Path) -> Estimate:
        total = known_total(self._config.wanted(), self._config.total)
        return Estimate(rows=total if total is not None else sum(self._foreseen().values()), calls=0)

    def foretell(self) -> list[str]:
        """How many rows each input gives, if none is rejected, and what its rows say that is not read."""
        lines = [line for config in self._config.inputs.values() for line in self._unread(config)]
        try:
            rows = self._counted()
            counts = allot(self._config.wanted(), rows, self._config.total)
        except Shortage as problem:
            return [*lines, str(problem).replace("\n    →", ";")]
        except EasyDistillError:
            return lines
        told = ", ".join(f"{count:,} of {rows[name]:,} rows of {name}" for name, count in counts.items())
        return [*lines, f"the mix: {told}, if no row is rejected"]

    def _unread(self, config: InputConfig) -> list[str]:
        try:
            scan = self._scan(config, ImageStore(), FORETOLD)
            refused = sum(isinstance(item, Rejection) for item in scan)
        except EasyDistillError:
            # The run tells why the rows cannot be read.
            return []
        told = [f"{config.path}: {refused:,} of its first {FORETOLD:,} rows are refused"] if refused else []
        return [*told, *scan.notices]

    def _counted(self) -> dict[str, int]:
        """Rows of each input's file; a row with several answers counts once."""
        found: dict[str, int] = {}
        for name, config in self._config.inputs.items():
            rows = sum(1 for _ in rows_of(config.path))
            found[name] = rows if config.max_samples is None else min(rows, config.max_samples)
        return found

    def _foreseen(self) -> dict[str, int]:
        try:
            return allot(self._config.wanted(), self._counted(), self._config.total)
        except EasyDistillError:
            return {}

    # --- the run ----------------------------------------------------------------------------------------------

    def run(self, context: StageContext) -> StageResult:
        pool = self._filled(context)
        try:
            pool.settle(self._config.clashes, self.name)
            available = {name: told.available for name, told in pool.told.items()}
            counts = allot(self._config.wanted(), available, self._config.total)
            if not sum(counts.values()):
                raise DataError(_nothing_left(pool))
        except DataError:
            write_rejected(context, pool.rejected)
            raise
        context.notice(_notices(pool))
        rows = Drawn(pool, counts, self._config.seed)
        context.reporter.say(f"  writing {len(rows):,} rows")
        write_paper_json(context.directory / LABELED_JSON, rows, context.images)
        context.stop.raise_if_requested()
        write_parquet(context.directory / LABELED_PARQUET, rows, context.images)
        if self._config.labeled_path is not None:
            publish_samples(context, Path(self._config.labeled_path), rows)
        return self._result(pool, counts, len(rows))

    def _filled(self, context: StageContext) -> Pool:
        """The rows of all inputs, less those that cannot be read or written, or contain a benchmark's problem."""
        benchmarks = None if self._config.decontaminate is None else self._config.decontaminate.index()
        pool = Pool(list(self._config.inputs))
        for name, config in self._config.inputs.items():
            scan = self._scan(config, context.images, None, context)
            for count, item in enumerate(scan, start=1):
                if count % NOTED == 0:
                    context.stop.raise_if_requested()
                found = item if isinstance(item, Rejection) else self._problem(item, benchmarks)
                if found is not None:
                    pool.reject(name, found)
                elif isinstance(item, Sample):
                    pool.add(name, item)
            context.notice(scan.notices)
            context.reporter.say(f"  {name}: {pool.told[name].read:,} rows")
        return pool

    def _scan(
        self, config: InputConfig, store: ImageStore, most: int | None, context: StageContext | None = None
    ) -> RowScan:
        sources = None if context is None else context.image_sources
        return RowScan(
            config.path,
            labelled=self._config.labelled,
            limit=at_most(most, config.max_samples),
            columns=config.column_names,
            images=ImageReader.of(config, store, sources),
            ids=SameIds(),
        )

    def _problem(self, row: Sample, benchmarks: Benchmarks | None) -> Rejection | None:
        """Why a row is not mixed, if so."""
        why = why_unwritable(row)
        if why is not None:
            return Rejection(row.id, self.name, UNWRITABLE, why)
        found = None if benchmarks is None else benchmarks.find_in(row)
        if found is None:
            return None
        return Rejection(row.id, self.name, found.reason, found.detail, 1, prompt_text(row))

    def _result(self, pool: Pool, counts: Mapping[str, int], written: int) -> StageResult:
        reasons: Counter[str] = Counter()
        for told in pool.told.values():
            reasons.update(told.rejected)
        rejected = sum(reasons.values())
        read = sum(told.read for told in pool.told.values())
        by_reason = dict(reasons.most_common())
        metrics: dict[str, Any] = {
            "operator": self.name,
            "funnel": _funnel(read, by_reason),
            "written": written,
            "inputs": {name: self._told(pool, name, counts[name]) for name in pool.names},
            **({"equal_chats": equal} if (equal := pool.equal_chats()) else {}),
        }
        if self._config.decontaminate is not None:
            metrics["decontamination"] = {
                "against": ", ".join(self._config.decontaminate.names),
                "dropped": sum(by_reason.get(reason, 0) for reason in CONTAMINATED),
            }
        # Rows that were not drawn were not rejected either.
        return StageResult(
            outputs=(LABELED_JSON, LABELED_PARQUET),
            rows=RowCounts(read, read - rejected, by_reason),
            rejected=pool.rejected,
            metrics=metrics,
        )

    def _told(self, pool: Pool, name: str, taken: int) -> dict[str, Any]:
        """The figures of one input."""
        told, config = pool.told[name], self._config.inputs[name]
        return {
            "read": told.read,
            **dict(told.rejected.most_common()),
            "renamed": told.renamed,
            "available": told.available,
            "taken": taken,
            **({"epochs": round(taken / told.available, 4)} if taken > told.available else {}),
            **({"license": config.license} if config.license else {}),
        }


def _funnel(read: int, rejected: Mapping[str, int]) -> list[tuple[str, int]]:
    """Rows left after each reason for rejections."""
    steps = [("candidates", read)]
    for reason, count in rejected.items():
        steps.append((reason, steps[-1][1] - count))
    return steps


def _notices(pool: Pool) -> Sequence[str]:
    """What a user may not expect of the ids."""
    lines: list[str] = []
    for name, told in pool.told.items():
        if told.rejected[DUPLICATE]:
            lines.append(f"{name}: {told.rejected[DUPLICATE]:,} rows are in the mix already, by id and chat")
        if told.rejected[CLASH]:
            lines.append(f"{name}: {told.rejected[CLASH]:,} rows have ids of other chats and were dropped")
        if told.renamed:
            lines.append(f'{name}: {told.renamed:,} rows have ids of other chats; theirs begin with "{name}:"')
    return lines


def _nothing_left(pool: Pool) -> str:
    told = "; ".join(
        f"{name}: {', '.join(f'{reason} ×{count}' for reason, count in found.rejected.most_common()) or 'no rows'}"
        for name, found in pool.told.items()
    )
    return f"no row is left to mix ({told})\n    → see why in rejected.jsonl"
