"""One run of a job: its directory is locked, its stages are run, its summary and report are written."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from easydistill.config.reading import LoadedConfig
from easydistill.data.answers_cache import using
from easydistill.data.files import show_directory
from easydistill.data.unwritten import forget_unwritten
from easydistill.engine.determinism import deterministic, explained_refusals
from easydistill.engine.events import Listener, OnProgress
from easydistill.engine.finished import replacing
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.machine import machine_error
from easydistill.engine.machine.stages import explained_machine
from easydistill.engine.progress import Reporter
from easydistill.engine.run_directory import LOGGER, RunDirectory
from easydistill.engine.runner import Runner, StageRecord
from easydistill.engine.secrets import MASK, Redactor, credentials, hide_secrets
from easydistill.engine.stage import Stage
from easydistill.engine.summary import Clock, exit_code_of, summarise
from easydistill.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TOO_MANY_REJECTED,
    EasyDistillError,
    Interrupted,
    MachineError,
    StoreError,
)
from easydistill.jobs import stages_of
from easydistill.launch.crew import Crew
from easydistill.launch.helper import Helper
from easydistill.launch.place import check_shared, place_of
from easydistill.launch.stages import launched, ranks_of_command, stage_runner, use_crew
from easydistill.results import RunResult, held_out
from easydistill.tracking.tracker import Tracker, check_sinks

_PATIENCE = 2.0
_NO_SUMMARY: dict[str, Any] = {"exit_code": EXIT_OK, "metrics": {}}
LOGGED_IN = "__easydistill_log__"
"""Attribute of an error whose traceback was logged: the path of the log."""


class RunEnded(EasyDistillError, RuntimeError):
    """The run that this command has helped has failed, or was interrupted."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class JobRun:
    """A job that runs in its run directory."""

    def __init__(
        self,
        loaded: LoadedConfig,
        quiet: bool,
        node_rank: int | None = None,
        on_progress: OnProgress | None = None,
        *,
        replace: bool = False,
    ) -> None:
        self._replace = replace
        self._node_rank = node_rank
        self._loaded = loaded
        self._directory = RunDirectory(loaded.run_directory)
        self._redactor = Redactor()
        self._redactor.register_config(loaded.job)
        self._stop = StopSignal()
        tell = None if on_progress is None else Listener(on_progress, self._stop, self._warn).tell
        self._reporter = Reporter(self._directory.metrics, quiet=quiet, tell=tell)
        self._place = place_of(loaded.job, os.environ, node_rank)
        check_shared(loaded.job, self._place)
        self._clock = Clock()
        self._records: list[StageRecord] = []
        self._tracker = self._sinks()

    def _warn(self, text: str) -> None:
        """Of a listener that has failed: a line for the user, and the traceback for the log."""
        LOGGER.warning("%s", text)
        self._reporter.say(f"note: {self._redactor.text(text.partition(chr(10))[0])}")

    def execute(self, again: Sequence[str] | None = None) -> RunResult:
        """Run the job.

        Args:
            again: first ask again for rows rejected for these reasons; None to skip this.
        """
        forget_unwritten()
        with launched(self._place), explained_machine(self._directory.path):
            if self._place.index > 0:
                return self._help()
            with deterministic(self._loaded.job.computes_deterministically):
                return self._lead(again)

    def _help(self) -> RunResult:
        """Take part in the run that another command leads."""
        say = self._reporter.say if self._place.speaks else lambda text: None
        helper = Helper(self._place, self._loaded.job, self._directory.path, self._stop, say)
        with self._stop.listening(patience=self._patience):
            end = helper.help(ranks_of_command(self._loaded.job))
        if end.exit_code in (EXIT_OK, EXIT_TOO_MANY_REJECTED):
            return replace(self._result(self._directory.read_summary() or _NO_SUMMARY, fresh=True), leads=False)
        raise RunEnded(f"{self._place.title(0)} has ended the run: {end.text}", end.exit_code)

    def _lead(self, again: Sequence[str] | None) -> RunResult:
        """Run the job, with the help of the other commands that share it, if there are any."""
        if self._place.count == 1:
            return self._prepared(again, self._held())
        with self._held():
            crew = Crew(self._place, self._directory.path, self._stop, self._reporter.say)
            try:
                with use_crew(crew):
                    result = self._prepared(again, contextlib.nullcontext())
            except BaseException as error:
                code = error.exit_code if isinstance(error, EasyDistillError) else EXIT_FAILED
                crew.end(code, self._redactor.text(str(error) or type(error).__name__))
                raise
            crew.end(result.exit_code, "")
            return result

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The directory is this command's alone; if the run is kept in a store, it is brought here and mirrored."""
        job = self._loaded.job
        if job.remote is None:
            with self._directory.locked():
                yield
            return
        from easydistill.remote.mirror import mirrored

        def say(text: str) -> None:
            self._reporter.say(self._redactor.text(text))

        for secret in credentials(os.environ):
            self._redactor.register(secret)
        try:
            with (
                self._directory.locked(),
                mirrored(job.remote, self._directory.path, job.storage, say, self._stop),
            ):
                yield
        except StoreError as error:
            error.args = (self._redactor.text(str(error)),)
            raise

    def _prepared(self, again: Sequence[str] | None, lock: AbstractContextManager[None]) -> RunResult:
        for note in self._loaded.notes:
            self._reporter.say(f"note: {note}")
        stages = stages_of(self._loaded.job)
        run_stage = stage_runner(self._loaded.job)
        runner = Runner(self._directory, self._reporter, self._redactor, self._stop, run_stage=run_stage)
        runner.preflight(stages)
        check_sinks(self._loaded.job)
        with lock, using(self._loaded.job.answers_cache, self._reporter.say), replacing(self._replace):
            if again is not None:
                from easydistill.asking.retry import mark_rejected
                from easydistill.synthesis.operators import rejection_reasons

                mark_rejected(self._directory.path, again, self._reporter.say, rejection_reasons)
            records = runner.completed(stages)
            found = self._directory.read_summary()
            if all(records) and found is not None and found["status"] == "done" and self._directory.report.is_file():
                self._reporter.say(f"everything is already done: {self._directory.report}")
                self._track_finished()
                return self._result(found, fresh=False)
            runner.examine(stages, records)
            runner.tell_standings(stages, records)
            runner.foretell(stages, records)
            runner.check_room(stages, records)
            with self._directory.logging(self._redactor):
                try:
                    return self._execute(runner, stages)
                finally:
                    self._tracker.close("failed")

    def _sinks(self) -> Tracker:
        settings: dict[str, Any] = self._redactor.value(self._resolved())
        return Tracker(
            self._directory, self._loaded.job, self._loaded.name, settings, self._redactor, self._reporter.say
        )

    def _track_finished(self) -> None:
        """Show a finished run where it was not shown before."""
        if not self._tracker.is_complete():
            with self._directory.logging(self._redactor):
                self._tracker.start()
                self._tracker.close("done")

    def _resolved(self) -> dict[str, Any]:
        return self._loaded.job.model_dump(mode="json", by_alias=True, exclude={"schema_uri"})

    def _execute(self, runner: Runner, stages: list[Stage]) -> RunResult:
        self._directory.write_config(self._source(), self._resolved(), self._redactor)
        self._directory.write_environment()
        LOGGER.info("run of %s starts", self._loaded.job.job_type)
        self._tracker.start()
        try:
            with self._stop.listening(patience=self._patience), explained_refusals():
                self._records = runner.execute(stages, self._keep)
        except Interrupted as error:
            with self._explained_end(error):
                self._finish("interrupted", EXIT_INTERRUPTED, str(error))
            error.args = (f"stopped; finished work is kept. To resume:\n    {self._resume_command()}",)
            raise
        except BaseException as error:
            code = error.exit_code if isinstance(error, EasyDistillError) else EXIT_FAILED
            LOGGER.log(logging.ERROR, "failed: %s\n%s", error, traceback.format_exc())
            if self._directory.log_is_whole:
                setattr(error, LOGGED_IN, self._directory.log)
            # The second Ctrl-C in a notebook.
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with self._explained_end(error):
                self._finish(status, code, f"{type(error).__name__}: {error}")
            raise
        code = exit_code_of(self._records, self._loaded.job.max_rejected_share)
        summary = self._finish("done", code, None)
        return self._result(summary, fresh=True)

    @contextlib.contextmanager
    def _explained_end(self, error: BaseException) -> Iterator[None]:
        """A report that cannot be written is not the error to tell: the run has ended with another one."""
        try:
            yield
        except Exception as failed:
            if machine_error(failed, self._directory.path) is None:
                raise
            if not isinstance(error, MachineError):
                error.add_note(f"its report could not be written: {failed}")

    def _keep(self, records: list[StageRecord]) -> None:
        self._records = list(records)
        self._directory.write_summary(self._summary("running"), self._redactor)

    def _summary(self, status: str, code: int | None = None, error: str | None = None) -> dict[str, Any]:
        about = {
            "job_type": self._loaded.job.job_type,
            "name": self._loaded.name,
            "resume": self._resume_command(),
        }
        return summarise(about, self._records, self._clock, status, code, error)

    def _finish(self, status: str, code: int, error: str | None) -> dict[str, Any]:
        from easydistill.report.build import build_report
        from easydistill.report.model_card import write_model_card

        summary = self._summary(status, code, error)
        self._directory.write_summary(summary, self._redactor)
        inner = self._inner_runs()
        trained = [run.student for run in inner if run.student.is_dir()]
        if trained:
            show_directory(trained[-1], self._directory.student)
        for run in (*inner, self._directory):
            write_model_card(run.path)
            build_report(run.path)
        self._tracker.close(status)
        LOGGER.info("run ends: %s, exit code %s", status, code)
        return summary

    @property
    def _patience(self) -> float:
        """Seconds in which a second signal is the first one again: launchers pass on what a terminal sends to all."""
        return _PATIENCE if self._place.launcher else 0.0

    def _inner_runs(self) -> list[RunDirectory]:
        """The runs of a pipeline's jobs, in order."""
        runs = [RunDirectory(path) for path in self._directory.stage_directories()]
        return [run for run in runs if run.summary_path.is_file()]

    def _source(self) -> dict[str, Any]:
        """The config as written, with every secret key's value hidden even where it is too short to search for."""
        hidden: dict[str, Any] = hide_secrets(self._loaded.source)
        return hidden

    def _resume_command(self) -> str:
        if self._loaded.path is None:
            return "easydistill.run(…) with the same config"
        parts = ["easydistill", "run", self._loaded.given]
        if self._node_rank is not None:
            parts += ["--node-rank", str(self._node_rank)]
        for override in self._loaded.overrides:
            name = override.partition("=")[0]
            hidden = name.strip().endswith("api_key")
            parts += ["--set", f"{name}={MASK}" if hidden else override]
        return self._redactor.text(shlex.join(parts))

    def _result(self, summary: dict[str, Any], *, fresh: bool) -> RunResult:
        return RunResult(
            self._directory.path,
            int(summary["exit_code"] or EXIT_OK),
            held_out(summary),
            summary,
            fresh,
        )
