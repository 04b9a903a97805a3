"""Where a stage runs: in this process, in several, or in those of several commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from easydistill.config.job import JobConfig
from easydistill.config.launch import LaunchConfig
from easydistill.engine.determinism import is_deterministic
from easydistill.engine.events import following
from easydistill.engine.stage import Stage, StageContext, StageResult
from easydistill.launch.crew import Crew
from easydistill.launch.messages import Task
from easydistill.launch.place import ALONE, Place, sections_of
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


_place = ALONE
_crew: Crew | None = None

_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "GROUP_", "ROLE_", "CROSS_")
_NAMES = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"})


@contextlib.contextmanager
def launched(place: Place) -> Iterator[None]:
    """Act as the command at a place. The launcher's variables are out of sight meanwhile: libraries would wait for
    processes that are none of theirs, or take settings from it that the config does not have."""
    global _place
    hidden = {}
    if place.launcher:
        hidden = {name: os.environ[name] for name in os.environ if name in _NAMES or name.startswith(_PREFIXES)}
    for name in hidden:
        del os.environ[name]
    _place = place
    try:
        yield
    finally:
        _place = ALONE
        os.environ.update(hidden)


@contextlib.contextmanager
def use_crew(crew: Crew) -> Iterator[None]:
    """Train with the help of other commands."""
    global _crew
    _crew = crew
    try:
        yield
    finally:
        _crew = None


def stage_runner(job: JobConfig) -> RunStage:
    """How a job's stages are run, as its `launch` section says."""
    launch: LaunchConfig | None = getattr(job, "launch", None)
    if launch is None and _crew is not None and "launch" in type(job).model_fields:
        # A launcher has started several.
        launch = LaunchConfig()

    def run(stage: Stage, context: StageContext) -> StageResult:
        if launch is None or not isinstance(stage, Distributed):
            return stage.run(context)
        count, shared = process_count(launch), launch
        if isinstance(stage, Independent):
            if stage.works_alone:
                return stage.run(context)
            shared = launch.model_copy(update={"strategy": "ddp", "offload": (), "deepspeed": None})
        # A process alone shares the model with nobody, but may have parts of it wait in the CPU's memory.
        if count == 1 and not shared.shares and _crew is None:
            return stage.run(context)
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
            budget=context.budget.snapshot() if context.budget is not None else None,
        )
        logs = context.directory / "processes"
        reporter = context.reporter
        with following(reporter.metrics_path, reporter.tell):
            if _crew is not None:
                outcome = _crew.run(task, count, logs)
            else:
                sharing = "" if isinstance(stage, Independent) else f" ({launch.sharing})"
                reporter.say(f"  {count} processes{sharing}")
                outcome = run_processes(task, count, logs, context.stop)
        assert outcome.result is not None, "the first process's errors are raised"
        context.notices.extend(outcome.notices)
        context.said.update(outcome.notices)
        return outcome.result

    return run


def process_count(launch: LaunchConfig) -> int:
    """Processes that this command starts."""
    if _place.local_rank is not None:
        return 1
    if launch.processes != "auto":
        return launch.processes
    if _place.ranks is not None:
        return _place.ranks
    import torch

    return max(1, torch.cuda.device_count())


def ranks_of_command(job: JobConfig) -> int:
    """Processes that this command starts where the config leaves the number open."""
    sections = sections_of(job)
    # Where it does not, that is not asked, and to count the GPUs takes seconds.
    fixed = all(section.processes != "auto" for section in sections)
    return process_count(sections[0] if fixed else LaunchConfig())
