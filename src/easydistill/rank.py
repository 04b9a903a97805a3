"""One of the processes in which a stage runs: `python -m easydistill.rank FD`.

It reads a `Task` from its input, rebuilds the job, runs the stage as the rank that its environment names, and writes
an `Outcome` to the file descriptor. The first rank alone writes files, shows progress and returns a result. When the
parent is gone, so is this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from easydistill.engine.budget import Budget
from easydistill.engine.determinism import deterministic
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.machine.memory import be_ended_first
from easydistill.engine.machine.stages import explained_machine
from easydistill.engine.progress import Reporter
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.stage import Stage, StageContext
from easydistill.errors import EXIT_FAILED
from easydistill.jobs import JOBS, stages_of
from easydistill.launch.messages import Outcome, Task, receive, send, sendable
from easydistill.methods.shared.strategies import base as strategies

PARENT_GONE = 3
"""Exit code; nobody is left to read it."""


def main() -> int:
    """Entry point; returns the exit code."""
    stop = StopSignal()
    be_ended_first()
    # The parent hears Ctrl-C and asks all ranks alike to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Launchers, Slurm and systemd send this one to every process. It has been held back since this one started.
    signal.signal(signal.SIGTERM, lambda *_: stop.request())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    rank = int(os.environ["RANK"])
    with os.fdopen(int(sys.argv[1]), "wb") as back:
        try:
            task: Task = receive(sys.stdin.buffer)
            threading.Thread(target=_listen, args=(sys.stdin.buffer, stop), daemon=True).start()
            outcome = _run(task, rank, stop)
        except BaseException as error:
            outcome = Outcome(rank, error=sendable(error), traceback=traceback.format_exc())
        send(back, outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end: libraries' threads of collectives would be waited for.
    os._exit(EXIT_FAILED if outcome.error is not None else 0)


def _listen(stream: IO[bytes], stop: StopSignal) -> None:
    try:
        while True:
            receive(stream)
            stop.request()
    except EOFError:
        os._exit(PARENT_GONE)


def _run(task: Task, rank: int, stop: StopSignal) -> Outcome:
    stage = _stage(task)
    context = StageContext(
        directory=task.directory,
        run_directory=task.run_directory,
        inputs=task.inputs,
        fingerprint=task.fingerprint,
        stop=stop,
        reporter=Reporter(task.metrics if rank == 0 else None, quiet=task.quiet or rank > 0),
        redactor=task.redactor,
        said=set(task.said),
        started=task.started,
        rank=rank,
        budget=Budget.of_snapshot(task.budget) if task.budget is not None else None,
    )
    with contextlib.ExitStack() as held:
        if rank == 0:
            held.enter_context(RunDirectory(task.run_directory).logging(task.redactor))
        held.enter_context(deterministic(task.deterministic))
        if task.launch.uses_deepspeed:
            _own_extensions(task.run_directory / "torch_extensions", rank)
        _join()
        strategies.use(task.launch)
        with explained_machine(task.directory, stage):
            result = stage.run(context)
    return Outcome(rank, result if rank == 0 else None, context.notices)


def _stage(task: Task) -> Stage:
    job: Any = JOBS.module(task.job_type).Job.model_validate(task.job)
    return next(stage for stage in stages_of(job) if stage.name == task.stage)


def _own_extensions(directory: Path, rank: int) -> None:
    """Where DeepSpeed keeps what it compiles, if anything: a build that is killed leaves a lock there, for which every
    run that shares the folder would wait in silence. What this run has left, nobody holds."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(directory))
    if rank == 0:
        for lock in directory.glob("**/lock"):
            lock.unlink()


def _join() -> None:
    """Join the other ranks, before any model is loaded."""
    import torch
    import torch.distributed

    if torch.cuda.device_count() == 1:
        # With `srun --gpus-per-task` each process sees its own device only.
        os.environ["LOCAL_RANK"] = "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


if __name__ == "__main__":
    main()
