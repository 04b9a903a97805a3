"""What pipelines add to config reading: sections that jobs share, and checks of each job's place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from easydistill.config.job import JobConfig
from easydistill.config.pipeline import PIPELINE, citations
from easydistill.config.reading.aliases import current_job_type
from easydistill.config.reading.diagnose import closest
from easydistill.config.reading.fields import keys_of, literals, models_in
from easydistill.config.reading.nodes import Issues, Node
from easydistill.config.values import show

ASKING = ("inference", "student_inference", "judge")
"""Sections that say how a model is asked: in `shared`, they are for the jobs that ask one."""
LIMITS = ("max_cost", "max_tokens_total")


def jobs_of(root: Node) -> dict[str, Node]:
    """A pipeline's jobs, as far as they are sections; empty if the config is not a pipeline."""
    jobs = root.section(("jobs",)) if root.at(("job_type",)) == PIPELINE else {}
    return {name: job for name, job in jobs.items() if isinstance(job.value, dict)}


@dataclass(frozen=True)
class Shared:
    """What became of `shared`: which job got what."""

    issues: Issues
    sections: Mapping[str, Node]
    """By key, as written."""
    takers: dict[str, list[str]]
    """Section → the jobs that got it."""
    whole: Mapping[str, frozenset[str]]
    """Job → the sections that it has from `shared` alone."""

    def without(self, name: str, job: Mapping[str, Any], field: str, why: str) -> dict[str, Any]:
        """A job's data without a shared section that it has no use for."""
        self.takers[field].remove(name)
        self.issues.note(self.sections[field], f"is not given to {name}, which asks no such model: {why}")
        return {key: value for key, value in job.items() if key != field}

    def tell(self, shared: Node | None) -> None:
        """Say which jobs each section went to, and which limits are each job's own."""
        if shared is None or not self.takers:
            return
        went = (f"{key} to {', '.join(names) or 'no job'}" for key, names in self.takers.items())
        self.issues.note(shared, f"goes to the jobs that have such sections: {'; '.join(went)}")
        for key, names in self.takers.items():
            limits = self.sections[key].value
            own = [limit for limit in LIMITS if isinstance(limits, dict) and limit in limits]
            if own and len(names) > 1:
                also = f"the pipeline's own {' and '.join(own)} limits them together"
                self.issues.note(limits[own[0]], f"limits each of {', '.join(names)} by itself; {also}")


def share_sections(
    root: Node, jobs: Mapping[str, Node], classes: Mapping[str, type[JobConfig]], issues: Issues
) -> Shared:
    """Add each section of `shared` to every job that knows it; the job's own keys win.

    A key that only some of these jobs know is given to those: a server's address not to a job that asks local models.
    """
    shared = root.section(("shared",)) if jobs else {}
    sections = {name: _sections_of(job, classes) for name, job in jobs.items()}
    own = {name: frozenset(job.value) for name, job in jobs.items()}
    given: dict[str, list[str]] = {}
    for key, section in shared.items():
        takers = [name for name, known in sections.items() if key in known]
        somewhere = _keys_in([sections[name][key] for name in takers])
        backends = {name: _backends_in(sections[name][key]) for name in takers}
        for name in takers:
            others = set().union(*backends.values())
            known = _known(section, _keys_in([sections[name][key]]), somewhere)
            fitting = _of_backend(known, backends[name], others)
            _take(jobs[name], key, fitting)
            left_out = [each for each in section.value if each not in fitting.value] if fitting is not section else []
            if left_out and key in jobs[name].value:
                there = f"goes to {name} without {', '.join(left_out)}, which only others of the jobs know"
                issues.note(section, there)
        given[key] = [name for name in takers if key in jobs[name].value]
        if not takers:
            known_keys = sorted(set().union(*sections.values()))
            guess = closest(key, known_keys)
            hint = f"did you mean {guess!r}?" if guess else f"remove it; the jobs have {', '.join(known_keys)}"
            issues.add(section, "none of the jobs has this section", hint)
    whole = {name: frozenset(key for key in given if name in given[key]) - own[name] for name in jobs}
    return Shared(issues, dict(shared), given, whole)


def _backends_in(info: FieldInfo) -> set[str]:
    """The backends that a section can name; empty for sections of other kinds."""
    fields = (cls.model_fields.get("backend") for cls in models_in(info.annotation))
    return {word for field in fields if field is not None for word in literals(field.annotation)}


def _of_backend(section: Node, fitting: set[str], somewhere: set[str]) -> Node:
    """A shared section without a backend that only other jobs can ask."""
    backend = section.value.get("backend") if isinstance(section.value, dict) else None
    if backend is None or backend.value in fitting or backend.value not in somewhere:
        return section
    kept = {key: item for key, item in section.value.items() if key != "backend"}
    return Node(kept, section.path, section.source, section.line)


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
    if len(kept) == len(section.value):
        return section
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
