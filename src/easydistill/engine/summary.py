"""What `summary.json` says about a run: its stages, its rows as the user counts them, its metrics."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import Any

from easydistill.engine.runner import StageRecord
from easydistill.engine.stage import kind_of
from easydistill.errors import EXIT_OK, EXIT_TOO_MANY_REJECTED

_REPEATING = frozenset({"rollout", "score", "curriculum", "evaluate", "tasks", "speed"})
"""Stages whose rows are counted by other stages, or are not rows of the user's."""
SPENDING = "spending.json"
"""In a pipeline's run directory: what its jobs have spent on models behind APIs."""
JOB = "job"
"""Key in the metrics of a pipeline's stage: the summary of the job that it ran."""


class Clock:
    """When a run started, and how long it has taken."""

    def __init__(self) -> None:
        self.started = datetime.datetime.now(datetime.UTC)
        self._start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start


def summarise(
    about: dict[str, Any],
    records: Sequence[StageRecord],
    clock: Clock,
    status: str,
    exit_code: int | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """The contents of `summary.json`.

    Args:
        about: `job_type`, `name`, `resume`.
        exit_code: None while the run is in progress.
    """
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds") if exit_code is not None else None
    return {
        "job_type": about["job_type"],
        "name": about["name"],
        "status": status,
        "exit_code": exit_code,
        "error": error,
        "started": clock.started.isoformat(timespec="seconds"),
        "finished": finished,
        "seconds": round(clock.seconds(), 3),
        "stages": {record.name: _stage(record) for record in records},
        "rows": rows_of(records),
        "metrics": metrics_of(records),
        "resume": about["resume"],
    }


def _stage(record: StageRecord) -> dict[str, Any]:
    manifest = record.manifest
    return {
        "status": record.status,
        "seconds": manifest.seconds,
        "rows": {
            "entered": manifest.rows.entered,
            "left": manifest.rows.left,
            "rejected": manifest.rows.rejected,
        },
        "tokens": manifest.tokens,
        "metrics": manifest.metrics,
        **({"notices": manifest.notices} if manifest.notices else {}),
    }


def metrics_of(records: Sequence[StageRecord]) -> dict[str, Any]:
    """Held-out metrics before and after training; of a white-box job also the size of a token's signal on disk."""
    found: dict[str, Any] = {}
    for record in records:
        metrics = record.manifest.metrics
        found |= metrics.get(JOB, {}).get("metrics", {})
        if "after" in metrics:
            found |= metrics
        if "bytes_per_token" in metrics:
            found["bytes_per_token"] = metrics["bytes_per_token"]
    return found


def rows_of(records: Sequence[StageRecord]) -> dict[str, Any]:
    """Rows as the user counts them: those that entered, were accepted in the end, and were rejected.

    The jobs of a pipeline may have more candidates than rows entered; the accepted ones are those of its last job.
    """
    # The jobs of a pipeline have names of the user's own.
    counted = [
        record.manifest
        for record in records
        if JOB in record.manifest.metrics or kind_of(record.name) not in _REPEATING
    ]
    reasons: dict[str, int] = {}
    for manifest in counted:
        for reason, count in manifest.rows.rejected.items():
            reasons[reason] = reasons.get(reason, 0) + count
    entered = counted[0].rows.entered if counted else 0
    rejected = sum(reasons.values())
    # A job that evaluates models has no rows of the user's.
    jobs = [manifest for manifest in counted if JOB in manifest.metrics and manifest.rows.entered]
    candidates = sum(manifest.rows.entered for manifest in jobs) if jobs else entered
    return {
        "entered": entered,
        "accepted": jobs[-1].rows.left if jobs else entered - rejected,
        "rejected": rejected,
        "rejected_share": round(rejected / candidates, 6) if candidates else 0.0,
        "rejected_by_reason": reasons,
    }


def exit_code_of(records: Sequence[StageRecord], allowed_share: float) -> int:
    """0, or 3 if more rows were rejected than the job, or a job of a pipeline, allows."""
    within = [record.manifest.metrics[JOB]["exit_code"] for record in records if JOB in record.manifest.metrics]
    too_many = rows_of(records)["rejected_share"] > allowed_share
    return EXIT_TOO_MANY_REJECTED if too_many or any(within) else EXIT_OK
