"""Jobs: one file each, holding its config and its plan. A file's name is the `job_type`.

A module offers `Job`, a config class with a literal `job_type`, and `plan(job) -> list[Stage]`. Importing a job
loads no heavy library: stages import theirs when they run.
"""

from easydistill.registry import Registry

JOBS = Registry("jobs", __name__)
