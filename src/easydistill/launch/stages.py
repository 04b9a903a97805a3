"""Where a stage runs: in this process, or in several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.engine.determinism import is_deterministic
from easydistill.engine.stage import Stage, StageContext, StageResult
from easydistill.launch.messages import Task
from easydistill.launch.processes import run_processes

RunStage = Callable[[Stage, StageContext], StageResult]


@runtime_checkable
class Distributed(Protocol):
    """A stage whose `run` may be called in several processes at once, each with its own rank."""

    def prepare(self, context: StageContext) -> None:
        """What one process does before the others start: what an earlier attempt left unfinished is removed."""


@runtime_checkable
class Independent(Distributed, Protocol):
    """A distributed stage whose processes each do a part of the work alone: they share no model, whatever the
    strategy."""

    @property
    def works_alone(self) -> bool:
        """Whether one process does it all, by the job's settings."""


def stage_runner(job: JobConfig) -> RunStage:
    """How a job's stages are run, as its `launch` section says."""
    launch: LaunchConfig | None = getattr(job, "launch", None)

    def run(stage: Stage, context: StageContext) -> StageResult:
        if launch is None or not isinstance(stage, Distributed):
            return stage.run(context)
        count, shared = process_count(launch), launch
        if isinstance(stage, Independent):
            if stage.works_alone:
                return stage.run(context)
            shared = launch.model_copy(update={"strategy": "ddp", "offload": (), "deepspeed": None})
        # A process alone shares the model with nobody, but may have parts of it wait in the CPU's memory.
        if count == 1 and shared.strategy == "ddp":
            return stage.run(context)
        context.reporter.say(
            f"  {count} processes" + ("" if isinstance(stage, Independent) else f" ({launch.strategy})")
        )
        stage.prepare(context)
        task = Task(
            job_type=job.job_type,
            job=job.model_dump(by_alias=True, exclude_unset=True),
            launch=shared,
            stage=stage.name,
            directory=context.directory,
            run_directory=context.run_directory,
            inputs=context.inputs,
            fingerprint=context.fingerprint,
            started=context.started,
            redactor=context.redactor,
            said=frozenset(context.said),
            metrics=context.reporter.metrics_path,
            quiet=context.reporter.quiet,
            deterministic=is_deterministic(),
        )
        outcome = run_processes(task, count, context.directory / "processes", context.stop)
        assert outcome.result is not None, "the first process's errors are raised"
        context.notices.extend(outcome.notices)
        context.said.update(outcome.notices)
        return outcome.result

    return run


def process_count(launch: LaunchConfig) -> int:
    """Processes on this machine."""
    if launch.processes != "auto":
        return launch.processes
    import torch

    return max(1, torch.cuda.device_count())
