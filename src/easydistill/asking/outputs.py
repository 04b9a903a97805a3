"""The files in which stages leave labelled rows, and the copy at `dataset.labeled_path`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easydistill.data.files import hash_file, replacing, set_aside, write_jsonl
from easydistill.data.images import ImageStore
from easydistill.data.messages import images_of
from easydistill.data.preferences import Preference
from easydistill.data.records import Rejection, Sample
from easydistill.data.writing import (
    pair_row,
    paper_rows,
    paths_beside,
    write_pairs_json,
    write_pairs_parquet,
    write_paper_json,
    write_parquet,
)
from easydistill.engine.checks import unwritable_issues
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import REJECTED, StageContext
from easydistill.errors import ConfigIssue

LABELED_JSON = "labeled.json"
LABELED_PARQUET = "labeled.parquet"


def write_rejected(context: StageContext, rejected: Sequence[Rejection]) -> None:
    """Write `rejected.jsonl` for a stage that fails because every row was rejected, for the user and for `retry`."""
    write_jsonl(context.directory / REJECTED, (context.redactor.value(row.as_row()) for row in rejected))


def publish_samples(context: StageContext, target: Path, samples: Sequence[Sample]) -> None:
    """Write a stage's rows to `target`; see `publish`. Their images are copied into a folder beside it."""
    beside = _images_beside(context, target, (digest for sample in samples for digest in sample.images))
    if beside is None:
        publish(context.directory, target, paper_rows(samples))
        return
    suffix = target.suffix.lower()
    made = context.directory / f"published{suffix}"
    if suffix == ".parquet":
        write_parquet(made, samples, beside, target)
    elif suffix == ".json":
        write_paper_json(made, samples, beside, target)
    else:
        write_jsonl(made, paper_rows(samples, paths_beside(target, beside)))
    _put(made, target)


def publish_pairs(context: StageContext, target: Path, pairs: Sequence[Preference]) -> None:
    """Write a stage's pairs to `target`, as `publish_samples` does."""
    beside = _images_beside(context, target, (digest for pair in pairs for digest in images_of(*pair.prompt)))
    if beside is None:
        publish(context.directory, target, map(pair_row, pairs))
        return
    suffix = target.suffix.lower()
    made = context.directory / f"published{suffix}"
    if suffix == ".parquet":
        write_pairs_parquet(made, pairs, beside, target)
    elif suffix == ".json":
        write_pairs_json(made, pairs, beside, target)
    else:
        paths = paths_beside(target, beside)
        write_jsonl(made, (pair_row(pair, paths) for pair in pairs))
    _put(made, target)


def _images_beside(context: StageContext, target: Path, digests: Iterable[str]) -> ImageStore | None:
    """A folder beside the file with copies of the images; None if there are none."""
    found = dict.fromkeys(digests)
    if not found:
        return None
    beside = ImageStore(target.with_name(f"{target.stem}.images"))
    for digest in found:
        beside.take(context.images.path(digest), copied=True)
    return beside


def publish(directory: Path, target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a stage's rows to `target`, in the format its suffix names; a file that was there before is kept."""
    source = {".json": LABELED_JSON, ".parquet": LABELED_PARQUET}.get(target.suffix.lower())
    made = directory / f"published{target.suffix.lower()}"
    if source is not None:
        made = directory / source
    else:
        write_jsonl(made, rows)
    _put(made, target)


def _put(made: Path, target: Path) -> None:
    if target.exists():
        if hash_file(target) == hash_file(made):
            return
        LOGGER.warning("%s already existed; the old file is kept as %s", target, set_aside(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy, not a link: users edit this file.
    with replacing(target) as temporary:
        shutil.copyfile(made, temporary)


def labeled_path_issues(path: str | None) -> list[ConfigIssue]:
    """Problems with `dataset.labeled_path` as an output file."""
    if path is None:
        return []
    if Path(path).suffix.lower() in {".json", ".jsonl", ".parquet"}:
        return unwritable_issues("dataset.labeled_path", path)
    problem = f"{json.dumps(path)} has no suffix that names a format"
    return [ConfigIssue("config", "dataset.labeled_path", problem, "end it in .json, .jsonl or .parquet")]
