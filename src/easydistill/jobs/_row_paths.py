"""What a config's paths of rows tell without running it: names that no reader knows, files that are not what they say.

Paths that are not there are told before a run: a config may be checked on another machine than the one it runs on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from easydistill.config.job import JobConfig
from easydistill.config.pipeline import Citation, PipelineConfig
from easydistill.engine.checks import misnamed_rows, unreadable_rows
from easydistill.errors import ConfigIssue

_OF_TEXTS = frozenset({"instruction_response_extraction"})
"""Jobs whose `dataset.instruction_path` names texts."""


def row_path_issues(job: JobConfig) -> list[ConfigIssue]:
    """Issues with the paths of rows of a job, or of the jobs of a pipeline."""
    if isinstance(job, PipelineConfig):
        return [
            replace(issue, path=f"jobs.{name}.{issue.path}")
            for name, inner in job.jobs.items()
            for issue in row_path_issues(inner)
        ]
    dataset: Any = getattr(job, "dataset", None)
    prompts, rows = (getattr(dataset, name, None) for name in ("instruction_path", "labeled_path"))
    issues = [] if getattr(job, "job_type", None) in _OF_TEXTS else _issues("dataset.instruction_path", prompts)
    if prompts is None:
        issues += _issues("dataset.labeled_path", rows)
    return issues


def _issues(key: str, path: str | None) -> list[ConfigIssue]:
    if path is None or Citation.read(path) is not None:
        return []
    return misnamed_rows(key, path) or unreadable_rows(key, path, only_present=True)
