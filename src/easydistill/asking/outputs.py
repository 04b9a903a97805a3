"""The files in which stages leave labelled rows, and the copy that the user asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easydistill.data.files import hash_file, replacing, set_aside, write_jsonl
from easydistill.data.records import Rejection
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import REJECTED, StageContext
from easydistill.errors import ConfigIssue

LABELED_JSON = "labeled.json"
LABELED_PARQUET = "labeled.parquet"


def write_rejected(context: StageContext, rejected: Sequence[Rejection]) -> None:
    """Leave the rejected rows of a stage that fails because nothing else is left, for the user and for `retry`."""
    write_jsonl(context.directory / REJECTED, (context.redactor.value(row.as_row()) for row in rejected))


def publish(directory: Path, target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Put a stage's rows where the user wants them, in the format the suffix says; keep what was there before."""
    source = {".json": LABELED_JSON, ".parquet": LABELED_PARQUET}.get(target.suffix.lower())
    made = directory / f"published{target.suffix.lower()}"
    if source is not None:
        made = directory / source
    else:
        write_jsonl(made, rows)
    if target.exists():
        if hash_file(target) == hash_file(made):
            return
        LOGGER.warning("%s was there before; it is kept as %s", target, set_aside(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy, not a link: users edit this file.
    with replacing(target) as temporary:
        shutil.copyfile(made, temporary)


def labeled_path_issues(path: str | None) -> list[ConfigIssue]:
    """What is wrong with `dataset.labeled_path` as a place to write to."""
    if path is None or Path(path).suffix.lower() in {".json", ".jsonl", ".parquet"}:
        return []
    problem = f"{json.dumps(path)} has no suffix that tells its format"
    return [ConfigIssue("config", "dataset.labeled_path", problem, "end it in .json, .jsonl or .parquet")]
