"""The report on a pipeline: its jobs with what each took and cost, their sums, and links to their own reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.engine.summary import SPENDING
from easydistill.report import document as doc
from easydistill.report import tables
from easydistill.report.collect import Facts
from easydistill.report.costs import bill_cells, bills_words, built_in_notes, total
from easydistill.report.fact_tables import ABSENT
from easydistill.report.figures import MISSING, or_missing, plural, share, time_of
from easydistill.report.synthesis import Spent, bills_of, read_bill
from easydistill.report.values import as_dict, as_int, as_text, json_object
from easydistill.report.words import Station, short_model

_LOCAL = "on this machine"


@dataclass(frozen=True)
class JobFacts:
    """A job of a pipeline."""

    name: str
    job_type: str
    status: str
    """`done`, `failed`, `interrupted`, or `waits` where it has not begun."""
    report: str
    """Path of its own report from the pipeline's; empty if there is none."""
    seconds: float | None
    entered: int | None
    left: int | None
    rejected: int
    bills: tuple[Spent, ...]
    """Of models behind APIs."""
    has_student: bool
    local: tuple[int, int]
    """(prompt, completion) tokens of models on this machine."""

    @property
    def bill(self) -> Spent | None:
        """All bills as one."""
        return _summed(self.bills) if self.bills else None


def jobs_of(facts: Facts) -> list[JobFacts]:
    """A pipeline's jobs, in order; those of its config that have not begun too."""
    written = as_dict(facts.setting("jobs"))
    known = {stage.name: stage for stage in facts.stages}
    names = dict.fromkeys([*written, *known])
    spending = as_dict(json_object(facts.directory / SPENDING).get("jobs"))
    built_in = as_dict(json_object(facts.directory / SPENDING).get("built_in"))
    found = []
    for number, name in enumerate(names, start=1):
        folder = facts.directory / "stages" / f"{number}-{name}"
        summary = json_object(folder / "summary.json")
        stage = known.get(name)
        status = "done" if stage is not None else as_text(summary.get("status")) or "waits"
        inner = [as_dict(value) for value in as_dict(summary.get("stages")).values()]
        rows = as_dict(summary.get("rows")) if summary else {}
        last = as_float(summary.get("seconds"))
        seconds = [s for value in inner if (s := as_float(value.get("seconds"))) is not None]
        bills = _bills(spending.get(name), inner, as_dict(built_in.get(name)))
        found.append(
            JobFacts(
                name=name,
                job_type=as_text(as_dict(written.get(name)).get("job_type")) or as_text(summary.get("job_type")),
                status=status,
                report=f"stages/{folder.name}/report.html" if (folder / "summary.json").is_file() else "",
                seconds=stage.seconds if stage is not None else sum(seconds) if seconds else last,
                entered=as_int(rows.get("entered")) if inner else None,
                left=as_int(rows.get("accepted")) if inner else None,
                rejected=as_int(rows.get("rejected")) or 0,
                bills=bills,
                has_student=status == "done" and (folder / "student").is_dir(),
                local=(0, 0) if bills else _tokens(inner),
            )
        )
    return found


def _bills(counted: Any, inner: Sequence[dict[str, Any]], built_in: dict[str, Any]) -> tuple[Spent, ...]:
    """What a job has spent: as counted from its journals, also where it was stopped; else as its stages say."""
    if isinstance(counted, list):
        of = {"prices_as_of": built_in.get("as_of"), "currency": built_in.get("currency")}
        return tuple(read_bill("teacher", as_dict(bill) | of) for bill in counted)
    return tuple(bill for value in inner for bill in bills_of(as_dict(value.get("metrics"))))


def _tokens(inner: Sequence[dict[str, Any]]) -> tuple[int, int]:
    counts = [as_dict(value.get("tokens")) for value in inner]
    prompt, completion = (sum(as_int(count.get(name)) or 0 for count in counts) for name in ("prompt", "completion"))
    return prompt, completion


def _summed(bills: Sequence[Spent]) -> Spent:
    def of(name: str) -> int | None:
        value = total(bills, name)
        return None if value is None else int(value)

    cached, reasoning = (
        sum(getattr(bill, name) or 0 for bill in bills) or None for name in ("cached_prompt_tokens", "reasoning_tokens")
    )
    return Spent(
        role="teacher",
        answers=of("answers"),
        prompt_tokens=of("prompt_tokens"),
        completion_tokens=of("completion_tokens"),
        answers_without_counts=sum(bill.answers_without_counts for bill in bills),
        cached_prompt_tokens=cached,
        reasoning_tokens=reasoning,
        cost=total(bills, "cost"),
    )


# --- words -------------------------------------------------------------------------------------------------------


def pipeline_lede(facts: Facts) -> str:
    """What the jobs did, in a sentence or two."""
    jobs = jobs_of(facts)
    done = [job.name for job in jobs if job.status == "done"]
    bills = [bill for job in jobs for bill in job.bills]
    every = len(done) == len(jobs)
    what = f"{plural(len(jobs), 'job')} ran" if every else f"{len(done)} of {plural(len(jobs), 'job')} are complete"
    asked = bills_words(bills) if bills else _local_words(jobs)
    return f"{what}{f': {names}' if (names := ', '.join(done)) else ''}. {asked}"


def _local_words(jobs: Sequence[JobFacts]) -> str:
    read, written = (sum(job.local[at] for job in jobs) for at in (0, 1))
    if not read and not written:
        return "No model behind an API was asked."
    return f"Models {_LOCAL} read {read:,} tokens and wrote {written:,}; no API was paid."


def pipeline_flow(facts: Facts) -> list[Station]:
    """Where the rows come from, the jobs, and what came out."""
    jobs = jobs_of(facts)
    given = [as_text(path) for path in as_dict(facts.setting("data")).values()]
    first = as_dict(next(iter(as_dict(facts.setting("jobs")).values()), None))
    dataset = as_dict(first.get("dataset"))
    path = as_text(dataset.get("instruction_path")) or as_text(dataset.get("labeled_path")) or (given or [""])[0]
    more = path if path != short_model(path) else ""
    stations = [Station("source", "Rows in", short_model(path) or MISSING, more)]
    stations.append(Station("teacher", plural(len(jobs), "job"), " → ".join(job.name for job in jobs), ""))
    if facts.has_student:
        trained = [job for job in jobs if job.has_student]
        by = f"trained by {trained[-1].name}" if trained else ""
        return [*stations, Station("made", "Student", "student/", by)]
    last = next((job for job in reversed(jobs) if job.left is not None), None)
    if last is None:
        return [*stations, Station("made", "Rows out", MISSING, "no job is complete")]
    return [*stations, Station("made", "Rows out", plural(last.left or 0, "row"), f"of {last.name}")]


def rejected_words(facts: Facts) -> str:
    """How many rows were rejected; of a pipeline, by all jobs, whose candidates are not only the rows that came in."""
    if not facts.is_pipeline:
        return tables.rejected_words(facts)
    jobs = [job for job in jobs_of(facts) if job.entered is not None]
    lost, read = sum(job.rejected for job in jobs), sum(job.entered or 0 for job in jobs)
    if not lost:
        return "No row was rejected."
    were = "was" if lost == 1 else "were"
    return f"{plural(lost, 'row')} {were} rejected, {share(lost, read)} of all that the jobs read."


# --- the table ---------------------------------------------------------------------------------------------------


def pipeline_sections(facts: Facts) -> Iterator[doc.Section]:
    """The jobs, and what they took and cost together."""
    if not facts.is_pipeline:
        return
    jobs = jobs_of(facts)
    bills = [bill for job in jobs for bill in job.bills]
    longest = max((job.seconds or 0.0 for job in jobs), default=0.0)
    rows = [*(_job_row(job, longest) for job in jobs), _total_row(jobs, bills)]
    heads = (
        doc.Column("State", ""),
        *doc.columns("Time", "Rows in", "Rows out", "Requests answered", "Tokens in", "Tokens out", "Cost"),
    )
    intro = doc.Text("Each job has a report of its own. Time, tokens and cost are those of all attempts.")
    table = doc.Table("Job", heads, tuple(rows), style="tight jobs", note=" ({})", footnotes=tuple(_notes(jobs, bills)))
    limits = [doc.Text(text) for text in _limit_words(facts, bills)]
    yield doc.Section("jobs", "What the jobs took", "Jobs", (intro, table, *limits), "hero")


def _job_row(job: JobFacts, longest: float) -> doc.Row:
    bill, (read, written) = job.bill, job.local
    own = (f"{tokens:,}" if tokens else ABSENT for tokens in job.local)
    asked = bill_cells(bill) if bill is not None else (ABSENT, *own, ABSENT)
    notes = [job.job_type, *([f"tokens of models {_LOCAL}"] if read or written else [])]
    cells = (job.status, time_of(job.seconds), or_missing(job.entered), or_missing(job.left), *asked)
    bars = (((job.seconds or 0.0) / longest, "kept"),) if longest else ()
    return doc.Row(job.name, tuple(map(doc.Cell, cells)), tuple(notes), bars, link=job.report)


def _total_row(jobs: Sequence[JobFacts], bills: Sequence[Spent]) -> doc.Row:
    seconds = [job.seconds for job in jobs if job.seconds is not None]
    begun = [job for job in jobs if job.entered is not None]
    asked = bill_cells(_summed(bills)) if bills else (ABSENT, ABSENT, ABSENT, ABSENT)
    first, last = (begun[0].entered, begun[-1].left) if begun else (None, None)
    cells = ("", time_of(sum(seconds) if seconds else None), or_missing(first), or_missing(last), *asked)
    return doc.Row("In all", tuple(doc.Cell(text, "total") for text in cells), ("tokens and cost of APIs",))


def _notes(jobs: Sequence[JobFacts], bills: Sequence[Spent]) -> list[str]:
    notes = ["Rows in all: those that the first job read, and those that the last one left."]
    for job in jobs:
        bill = job.bill
        if bill is not None and bill.answers_without_counts:
            of = plural(bill.answers_without_counts, "answer")
            notes.append(f"{job.name}: the server counted no tokens of {of}.")
        elif bill is not None and bill.cost is None:
            notes.append(f"{job.name}: no prices are known (inference.prices), so its cost is n/a, and that of all.")
    known = [bill.cost for bill in bills if bill.cost is not None]
    if known and len(known) < len(bills):
        notes.append(f"The costs that are known add up to {sum(known):,.6g}.")
    return [*notes, *built_in_notes(bills)]


def _limit_words(facts: Facts, bills: Sequence[Spent]) -> Iterator[str]:
    """What is left of the pipeline's budget."""
    cost, most = total(bills, "cost"), as_float(facts.setting("max_cost"))
    if most is not None and cost is not None:
        yield f"Of the pipeline's max_cost of {most:,.6g}, {cost:,.6g} is spent and {max(0.0, most - cost):,.6g} left."
    read, written = (total(bills, f"{kind}_tokens") for kind in ("prompt", "completion"))
    limit = as_int(facts.setting("max_tokens_total"))
    if limit is not None and read is not None and written is not None:
        taken = int(read + written)
        left = max(0, limit - taken)
        yield f"Of the pipeline's max_tokens_total of {limit:,}, {taken:,} are spent and {left:,} left."
