"""Jobs: one file each, holding its config and its plan. A file's name is the `job_type`.

A module offers `Job`, a config class with a literal `job_type`, and `plan(job) -> list[Stage]`. Importing a job
loads no heavy library: stages import theirs when they run.
"""

from easydistill.config.job import JobConfig
from easydistill.engine.stage import Stage
from easydistill.registry import Registry

JOBS = Registry("jobs", __name__)


def stages_of(job: JobConfig) -> list[Stage]:
    """A job's stages, in order."""
    stages: list[Stage] = JOBS.module(job.job_type).plan(job)
    return stages
