"""What was submitted, in the run directory: `submissions/1.json` and, beside it, the document as it was sent.

A record is written before its job is sent, without an id, and again with it: a crash in between leaves a record by
whose name the job can be looked for.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.cloud.settings import TargetConfig
from easydistill.cloud.target import TARGETS
from easydistill.data.files import read_json, write_json, write_text
from easydistill.errors import CloudError, DataError

FOLDER = "submissions"


@dataclass(frozen=True)
class Submission:
    """One job that was sent."""

    number: int
    target: str
    name: str
    command: list[str]
    """What each machine runs."""
    run_directory: str
    """On the job's machines, or in a store."""
    nodes: int
    document: str
    """File name of what was sent."""
    settings: dict[str, Any]
    """Of the target."""
    submitted: str
    """When, in local time."""
    id: str | None = None
    """The target's; None while it is not known whether it has the job."""
    cancelled: str | None = None
    store: dict[str, Any] | None = None
    """`storage.options` of a run that is kept in an object store."""

    def typed_settings(self) -> TargetConfig:
        """The target's settings."""
        kind: type[TargetConfig] = target_module(self.target).Config
        return kind.model_validate(self.settings)


def target_module(name: str) -> Any:
    """The module of a target, as `--to` names it."""
    return TARGETS.module(name.replace("-", "_"))


def target_names() -> list[str]:
    return [name.replace("_", "-") for name in TARGETS.names()]


def now() -> str:
    return datetime.datetime.now().astimezone().replace(microsecond=0).isoformat()


def write_document(run_directory: Path, submission: Submission, text: str) -> None:
    """Keep what is sent."""
    write_text(run_directory / FOLDER / submission.document, text)


def claim(run_directory: Path, submission: Submission) -> None:
    """Write a new submission's record, whose number must not be another's.

    Raises:
        CloudError: another `submit` has just taken the number.
    """
    path = _path(run_directory, submission)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as handle:
            handle.write(json.dumps(asdict(submission)))
    except FileExistsError:
        raise CloudError(
            f"{path}: another `submit` of this run is at work\n"
            f"    → see what it sent: `easydistill status {run_directory}`"
        ) from None


def write_record(run_directory: Path, submission: Submission) -> None:
    write_json(_path(run_directory, submission), asdict(submission))


def _path(run_directory: Path, submission: Submission) -> Path:
    return run_directory / FOLDER / f"{submission.number}.json"


def remove_record(run_directory: Path, submission: Submission) -> None:
    """Forget a job that was refused."""
    _path(run_directory, submission).unlink(missing_ok=True)
    (run_directory / FOLDER / submission.document).unlink(missing_ok=True)


def cancelled(run_directory: Path, submission: Submission) -> None:
    write_record(run_directory, replace(submission, cancelled=now()))


def read_records(run_directory: Path) -> list[Submission]:
    """In the order in which they were submitted.

    Raises:
        DataError: one is damaged.
    """
    found = []
    for path in (run_directory / FOLDER).glob("*.json"):
        if not path.stem.isdecimal():
            continue
        try:
            found.append(Submission(**read_json(path)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: no record of a submission: {error}\n    → remove it, or restore it") from None
    return sorted(found, key=lambda submission: submission.number)


def chosen(run_directory: Path, number: int | None) -> Submission:
    """A run's submission: the last one unless another is asked for.

    Raises:
        DataError: there is none.
    """
    records = read_records(run_directory)
    for submission in reversed(records):
        if number is None or submission.number == number:
            return submission
    if not records:
        raise DataError(
            f"{run_directory}: nothing was submitted from here\n    → name the run directory, which `submit` has told"
        )
    raise DataError(f"{run_directory}: there is no submission {number}, only 1 to {records[-1].number}")
