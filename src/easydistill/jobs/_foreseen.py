"""What a pipeline's jobs will cost before the rows that they wait for exist: upper and lower limits.

Each job is estimated on rows that stand in for those of earlier jobs: as many as there will be at most (no earlier job
rejects any), with the prompts that the pipeline begins with, and answers that are as short as possible for the lower
limit and as long as permitted for the upper one. A student that is yet to be trained is the one it is made of.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from easydistill.config.dataset import ColumnsConfig
from easydistill.config.job import JobConfig
from easydistill.config.pipeline import Citation, citations
from easydistill.config.values import KeyPath
from easydistill.data.messages import text_of
from easydistill.data.reading import read_samples
from easydistill.data.row_files import rows_of
from easydistill.engine.stage import Estimate, estimate_of
from easydistill.errors import EasyDistillError
from easydistill.jobs import stages_of
from easydistill.jobs._citations import replaced, untrained, values_of

_SHOWN = 64
"""Rows that stand in for all."""
_BYTES_A_TOKEN = 2
"""Of the longest answers: as few as a forecast assumes, so that its upper limit is their number of tokens."""
_COUNTED = ("calls", "tokens_at_most", "rows")
_RANGED = ("prompt_tokens", "completion_tokens", "cost")
_SCORES = {
    **dict.fromkeys(("rv", "cd", "informativeness", "helpfulness", "generalisation"), 5),
    **dict.fromkeys(("correct", "correctness"), 1),
}


@dataclass(frozen=True)
class ForeseenRows:
    """Rows that do not exist yet."""

    count: int
    """As many as there can be."""
    prompts: tuple[str, ...]
    """Some prompts like theirs."""
    longest: int
    """Most tokens of an answer."""


def foreseen_estimates(name: str, jobs: Mapping[str, JobConfig]) -> dict[str, Estimate]:
    """Stage → estimate, of a job that waits for others; nothing for stages of which nothing is known."""
    try:
        rows = _rows_in(name, jobs)
    except EasyDistillError:
        # The pipeline begins with texts or images.
        rows = None
    with tempfile.TemporaryDirectory(prefix="easydistill-") as folder:
        ends = [_estimates(name, jobs, rows, Path(folder), words) for words in (0, 0 if rows is None else rows.longest)]
    low, high = ends
    return {stage: _between(low[stage], high[stage]) for stage in low.keys() & high.keys()}


def _estimates(
    name: str, jobs: Mapping[str, JobConfig], rows: ForeseenRows | None, folder: Path, words: int
) -> dict[str, Estimate]:
    """Estimates on rows with answers of so many tokens."""
    stand_in = folder / f"{words}.jsonl"
    shown = _write(stand_in, rows, words) if rows is not None else 0
    job: Any = _with_stand_ins(name, jobs, stand_in)
    if job is None:
        return {}
    if rows is not None and job.job_type == "mix":
        return {stage.name: Estimate(rows=rows_made(job, rows.count), calls=0) for stage in stages_of(job)}
    factor = rows.count / shown if rows is not None and shown else 1.0
    found: dict[str, Estimate] = {}
    for stage in stages_of(job):
        try:
            estimate = estimate_of(stage, folder / "no-such-run")
        except EasyDistillError:
            # It needs rows of a kind that these are not.
            continue
        # Where a number is wanted, it does not depend on how many rows come in.
        found[stage.name] = estimate if estimate.calls_at_most is not None else _scaled(estimate, factor)
    return found


def _with_stand_ins(name: str, jobs: Mapping[str, JobConfig], rows: Path) -> JobConfig | None:
    """A job with something in the place of every citation; None if a model is not known."""
    found: dict[KeyPath, Any] = {}
    for path, citation in citations(values_of(jobs[name])):
        if citation.artifact == "student":
            base = untrained(citation, jobs)
            if base is None:
                return None
            found[path] = base
        else:
            found[path] = str(rows)
    try:
        return type(jobs[name]).model_validate(replaced(values_of(jobs[name]), found))
    except ValueError:
        return None


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows_in(name: str, jobs: Mapping[str, JobConfig]) -> ForeseenRows | None:
    """The rows that a job reads; None if it reads none."""
    sources = list(_sources(jobs[name]))
    if not sources:
        return None
    parts = [_rows_at(path, columns, jobs) for path, columns in sources]
    prompts = tuple(dict.fromkeys(prompt for part in parts for prompt in part.prompts))
    total = sum(part.count for part in parts)
    most = getattr(getattr(jobs[name], "dataset", None), "max_samples", None)
    return ForeseenRows(min(total, most or total), prompts[:_SHOWN], max(part.longest for part in parts))


def _sources(job: Any) -> Iterator[tuple[str, ColumnsConfig | None]]:
    """(path, names of columns) of what a job reads its rows from."""
    dataset = getattr(job, "dataset", None)
    for path in (getattr(dataset, "instruction_path", None) or getattr(dataset, "labeled_path", None),):
        if path is not None:
            yield path, getattr(dataset, "columns", None)
    for part in getattr(getattr(job, "mix", None), "inputs", {}).values():
        yield part.path, part.columns


def _rows_at(path: str, columns: ColumnsConfig | None, jobs: Mapping[str, JobConfig]) -> ForeseenRows:
    citation = Citation.read(path)
    if citation is None:
        names = {} if columns is None else columns.names()
        samples, _ = read_samples(path, labelled=None, limit=_SHOWN, columns=names)
        prompts = tuple("\n\n".join(text_of(message) for message in sample.prompt) for sample in samples)
        answers = [len((sample.answer or "").encode()) // _BYTES_A_TOKEN for sample in samples]
        return ForeseenRows(sum(1 for _ in rows_of(path)), prompts, max(answers, default=0))
    read = _rows_in(citation.job, jobs)
    job = jobs[citation.job]
    if read is None:
        return ForeseenRows(0, (), 0)
    inference = getattr(job, "inference", None)
    answers_anew = inference is not None and job.job_type not in (
        "cot_scoring",
        "instruction_scoring",
        "task_labelling",
    )
    return replace(
        read,
        count=rows_made(job, read.count),
        longest=inference.max_new_tokens if inference is not None and answers_anew else read.longest,
    )


def rows_made(job: Any, rows: int) -> int:
    """How many rows a job makes of so many at most, if it rejects none."""
    made: Any = getattr(job, "synthesis", None)
    match job.job_type:
        case "instruction_expansion":
            return int(made.num_output_samples)
        case "task_balancing":
            return made.total or rows
        case "cot_generation" if made.keep == "all":
            return rows * int(made.num_samples)
        case "preference_data":
            return rows * int(made.max_pairs)
        case "image_instruction_generation":
            return rows * int(made.instructions_per_image)
        case "mix":
            return job.mix.total or rows
    return rows


def _write(path: Path, rows: ForeseenRows, words: int) -> int:
    """Write rows that stand in for others; returns how many."""
    shown = min(rows.count, _SHOWN)
    answer = "so " * (words * _BYTES_A_TOKEN // 3)
    with path.open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(islice(cycle(rows.prompts or ("",)), shown)):
            # No two are the same question, which would be asked once.
            repeated = f" ({number})" if number >= len(rows.prompts) else ""
            fields = {"reference": str(number), "tests": ["assert f() == 1"], "task": "Math", **_SCORES}
            answered = f"{answer}\n#### {number}"
            row = {"id": f"row-{number}", "instruction": prompt + repeated, "output": answered, **fields}
            print(json.dumps(row), file=file)
    return shown


# --- figures ---------------------------------------------------------------------------------------------------------


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    counted = {key: round(value * factor) for key in _COUNTED if (value := getattr(estimate, key)) is not None}
    ranged: dict[str, Any] = {}
    for key in _RANGED:
        if (value := getattr(estimate, key)) is not None:
            ranged[key] = tuple(end * factor if key == "cost" else round(end * factor) for end in value)
    work = estimate.work
    if work is not None:
        work = replace(work, amount=work.amount * factor)
    return replace(estimate, **counted, **ranged, work=work)


def _between(low: Estimate, high: Estimate) -> Estimate:
    """The range from one estimate's lower end to the other's upper one."""
    ends: dict[str, Any] = {
        key: (getattr(low, key)[0], getattr(high, key)[1])
        for key in _RANGED
        if getattr(low, key) is not None and getattr(high, key) is not None
    }
    return replace(high, **ends)
