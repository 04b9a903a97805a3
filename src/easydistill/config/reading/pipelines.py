"""What pipelines add to config reading: sections that jobs share, and checks of each job's place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic.fields import FieldInfo

from easydistill.config.job import JobConfig
from easydistill.config.pipeline import PIPELINE, citations
from easydistill.config.reading.aliases import current_job_type
from easydistill.config.reading.diagnose import closest
from easydistill.config.reading.fields import keys_of, models_in
from easydistill.config.reading.nodes import Issues, Node
from easydistill.config.values import show


def jobs_of(root: Node) -> dict[str, Node]:
    """A pipeline's jobs, as far as they are sections; empty if the config is not a pipeline."""
    jobs = root.section(("jobs",)) if root.at(("job_type",)) == PIPELINE else {}
    return {name: job for name, job in jobs.items() if isinstance(job.value, dict)}


def share_sections(
    root: Node, jobs: Mapping[str, Node], classes: Mapping[str, type[JobConfig]], issues: Issues
) -> None:
    """Add each section of `shared` to every job that knows it; the job's own keys win.

    A key that only some of these jobs know is given to those: a server's address not to a job that asks local models.
    """
    shared = root.section(("shared",)) if jobs else {}
    sections = {name: _sections_of(job, classes) for name, job in jobs.items()}
    for key, section in shared.items():
        takers = [name for name, known in sections.items() if key in known]
        somewhere = _keys_in([sections[name][key] for name in takers])
        for name in takers:
            _take(jobs[name], key, _known(section, _keys_in([sections[name][key]]), somewhere))
        if not takers:
            known = sorted(set().union(*sections.values()))
            guess = closest(key, known)
            hint = f"did you mean {guess!r}?" if guess else f"remove it; the jobs have {', '.join(known)}"
            issues.add(section, "none of the jobs has this section", hint)


def _sections_of(job: Node, classes: Mapping[str, type[JobConfig]]) -> dict[str, FieldInfo]:
    job_type = current_job_type(job.at(("job_type",)))
    if job_type not in classes:
        return {}
    return {key: info for key, info in classes[job_type].model_fields.items() if key not in JobConfig.model_fields}


def _keys_in(fields: Iterable[FieldInfo]) -> set[str] | None:
    """The keys of sections; None if they can be any."""
    found = [list(models_in(info.annotation)) for info in fields]
    return {key for models in found for key in keys_of(models)} if all(found) else None


def _known(section: Node, keys: set[str] | None, somewhere: set[str] | None) -> Node:
    """A shared section without the keys that only other jobs know. What none knows stays, so that it is reported."""
    if not isinstance(section.value, dict) or keys is None or somewhere is None:
        return section
    kept = {key: item for key, item in section.value.items() if key in keys or key not in somewhere}
    return Node(kept, section.path, section.source, section.line)


def _take(into: Node, key: str, shared: Node) -> None:
    if key not in into.value and shared.value == {}:
        return
    own = into.value.setdefault(key, shared)
    if own is not shared and isinstance(own.value, dict) and isinstance(shared.value, dict):
        for name, item in shared.value.items():
            _take(own, name, item)


def check_place(name: str, jobs: Mapping[str, Node], issues: Issues) -> None:
    """Report what is valid in a job on its own, but not at its place in this pipeline."""
    job = jobs[name]
    if job.at(("job_type",)) == PIPELINE:
        issues.add(job, "a pipeline inside a pipeline", "write its jobs here, in order", ("job_type",))
    if "output_dir" in job.value:
        hint = "remove it; all jobs are inside the pipeline's output_dir"
        issues.add(job, "a job of a pipeline cannot have its own run directory", hint, ("output_dir",))
    if "track" in job.value:
        hint = "move it to the top level: the figures of all jobs are tracked there"
        issues.add(job, "a job of a pipeline is tracked with the pipeline", hint, ("track",))
    if "storage" in job.value:
        hint = "move it to the top level: the files of all jobs are kept there"
        issues.add(job, "a job of a pipeline is kept with the pipeline", hint, ("storage",))
    if "answers_cache" in job.value:
        hint = "move it to the top level: the answers of all jobs are kept there"
        issues.add(job, "a job of a pipeline keeps its answers with the pipeline's", hint, ("answers_cache",))
    earlier = list(jobs)[: list(jobs).index(name)]
    before = ", ".join(earlier) or "none"
    for path, citation in citations(job.plain()):
        if citation.job in earlier:
            continue
        shown = show(f"@{citation.job}/{citation.artifact}")
        guess = closest(citation.job, earlier)
        if citation.job in jobs:
            problem = f"{shown} cites {'the job itself' if citation.job == name else 'a job that runs later'}"
            hint = f"jobs run in the order they are written; before this one: {before}"
        else:
            problem = f"{shown}: there is no job {citation.job!r} here"
            hint = f'did you mean "@{guess}/{citation.artifact}"?' if guess else f"earlier jobs: {before}"
        issues.add(job, problem, hint, path)
