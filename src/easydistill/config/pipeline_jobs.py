"""A pipeline's jobs, from as written to typed: old names, shared sections, citations, mistakes in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from easydistill.config.aliases import apply_aliases
from easydistill.config.diagnose import closest
from easydistill.config.document import Document, KeyPath, show
from easydistill.config.job import JobConfig
from easydistill.config.pipeline import PIPELINE, Part, citations
from easydistill.errors import ConfigIssue

Issues = dict[KeyPath, ConfigIssue]
Judge = Callable[[Document, dict[str, Any]], tuple[JobConfig | None, Issues]]


def parts_of(document: Document, classes: Mapping[str, type[JobConfig]]) -> tuple[dict[str, Part], Issues]:
    """A document for each job, shared sections taken in; changes the whole in place. Empty where nothing is a pipeline.

    Returns:
        The jobs that are sections, and issues by path in the whole.
    """
    jobs = document.data.get("jobs")
    if document.data.get("job_type") != PIPELINE or not isinstance(jobs, dict):
        return {}, {}
    parts = {name: Part.of(document, ("jobs", name)) for name, job in jobs.items() if isinstance(job, dict)}
    issues: Issues = {}
    for name, part in parts.items():
        issues |= {("jobs", name, *path): issue for path, issue in apply_aliases(part).items()}
        document.notes += part.notes
    if not isinstance(document.data.get("shared"), dict):
        return parts, issues
    shared = Part.of(document, ("shared",))
    issues |= {("shared", *path): issue for path, issue in apply_aliases(shared).items()}
    document.notes += shared.notes
    for section in shared.data:
        takers = [part for part in parts.values() if section in _sections_of(part, classes)]
        for part in takers:
            part.take(section, shared)
        if not takers:
            known = sorted({key for part in parts.values() for key in _sections_of(part, classes)})
            guess = closest(section, known)
            mend = f"did you mean {guess!r}?" if guess else f"remove it; they have {', '.join(known)}"
            issues["shared", section] = document.issue(("shared", section), "no job here has such a section", mend)
    return parts, issues


def _sections_of(part: Part, classes: Mapping[str, type[JobConfig]]) -> set[str]:
    job_type = part.data.get("job_type")
    job = classes[job_type] if isinstance(job_type, str) and job_type in classes else None
    return set(job.model_fields) - set(JobConfig.model_fields) if job is not None else set()


def typed_jobs(parts: Mapping[str, Part], data: dict[str, Any], judge: Judge) -> tuple[dict[str, JobConfig], Issues]:
    """Every job's config.

    Args:
        data: of the whole, with the environment filled in.
        judge: validates one job, given its document and data.

    Returns:
        The valid ones, and issues by path in the whole; what is wrong in `shared` is told once.
    """
    jobs: dict[str, JobConfig] = {}
    issues: Issues = {}
    for name, part in parts.items():
        job, found = judge(part, data["jobs"][name])
        found |= _misplaced(part) | _wrong_citations(part, name, list(parts))
        for path, issue in found.items():
            issues.setdefault(("shared", *path) if path in part.shared else ("jobs", name, *path), issue)
        if job is not None:
            jobs[name] = job
    return jobs, issues


def _misplaced(part: Part) -> Issues:
    """What a job of its own may have, but not one inside a pipeline."""
    issues: Issues = {}
    if part.data.get("job_type") == PIPELINE:
        problem = "a pipeline inside a pipeline"
        issues[("job_type",)] = part.issue(("job_type",), problem, "write its jobs here, in order")
    if "output_dir" in part.data:
        mend = "remove it; the pipeline's own output_dir holds all of its jobs"
        issues[("output_dir",)] = part.issue(
            ("output_dir",), "a job of a pipeline has no run directory of its own", mend
        )
    return issues


def _wrong_citations(part: Part, name: str, order: list[str]) -> Issues:
    """Citations of jobs that do not come before the one that cites."""
    issues: Issues = {}
    earlier = order[: order.index(name)]
    known = ", ".join(earlier) or "none"
    for path, citation in citations(part.data):
        if citation.job in earlier:
            continue
        shown = show(f"@{citation.job}/{citation.artifact}")
        guess = closest(citation.job, earlier)
        if citation.job in order:
            problem = f"{shown} cites {'the job itself' if citation.job == name else 'a job that runs later'}"
            mend = f"jobs run in the order in which they are written; before this one: {known}"
        else:
            problem = f"{shown}: there is no job {citation.job!r} here"
            mend = f'did you mean "@{guess}/{citation.artifact}"?' if guess else f"earlier jobs: {known}"
        issues[path] = part.issue(path, problem, mend)
    return issues
