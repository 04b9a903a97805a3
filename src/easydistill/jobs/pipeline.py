"""Several jobs in one file, each reading the results of earlier ones: expand → deduplicate → label → train."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from easydistill.config.job import JobConfig
from easydistill.config.pipeline import Citation, PipelineConfig, citations
from easydistill.config.values import KeyPath, dotted
from easydistill.data.manifest import Manifest, RowCounts
from easydistill.engine.machine.room import Needed
from easydistill.engine.machine.stages import room_of
from easydistill.engine.progress import Reporter
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.runner import Runner, StageRecord
from easydistill.engine.stage import (
    Estimate,
    Examining,
    PlannedStage,
    Previewed,
    Stage,
    StageContext,
    StageResult,
    notes_of,
    planned_stage,
    preview_of,
)
from easydistill.engine.summary import JOB, Clock, exit_code_of, summarise
from easydistill.errors import ConfigError, ConfigIssue, DataError, ModelError, TeacherError
from easydistill.jobs import stages_of
from easydistill.jobs._budget import Purse, budget_issues
from easydistill.jobs._citations import Resolved, concerns, replaced, untrained, values_of
from easydistill.jobs._foreseen import foreseen_estimates
from easydistill.launch.stages import stage_runner

LABELED = "labeled"
_NAMES = {LABELED: "labeled.parquet"}
"""File names of artifacts that are cited by a shorter name."""
_STUDENT: KeyPath = ("models", "student")
_NEEDED: dict[KeyPath, str] = {("models",): "a language model", ("rewards", "reward_model"): "a reward model"}
"""Section of a job → the kind of model that it takes."""


class Job(PipelineConfig):
    """Jobs that run one after another; a job cites the artifacts of earlier ones as `@name/artifact`."""

    job_type: Literal["pipeline"]
    """Which job this is."""


def plan(job: Job) -> list[Stage]:
    """A stage for each job.

    Raises:
        ConfigError: a job cites an artifact that the cited job does not make.
    """
    assert job.output_dir is not None, "a loaded pipeline knows its run directory"
    run = RunDirectory(job.run_directory(""))
    issues = [issue for name in job.jobs for issue in _miscited(name, job.jobs)]
    issues += budget_issues(job)
    if issues:
        raise ConfigError(issues)
    purse = Purse(job, run)
    return [_JobStage(name, job.jobs, run, purse) for name in job.jobs]


def _miscited(name: str, jobs: Mapping[str, JobConfig]) -> Iterator[ConfigIssue]:
    """Citations of artifacts that the cited job does not make, or that are the wrong kind of model."""
    for path, citation in citations(values_of(jobs[name])):
        cited = jobs[citation.job]
        stages = stages_of(cited)
        where, who = f"jobs.{name}.{dotted(path)}", f"{citation.job} ({cited.job_type})"
        offers = dict.fromkeys(chain.from_iterable(stage.offers for stage in stages))
        wanted = _NAMES.get(citation.artifact, citation.artifact)
        if offers and not any(f"{wanted}/".startswith(f"{offer}/") for offer in offers):
            shown = ", ".join(f"@{citation.job}/{offer}" for offer in offers)
            yield ConfigIssue("config", where, f"{who} makes no {json.dumps(citation.artifact)}", f"it makes {shown}")
        made = "a reward model" if any(stage.classifies for stage in stages) else "a language model"
        needed = _NEEDED.get(path[:2], _NEEDED.get(path[:1], made))
        if citation.artifact == "student" and made != needed:
            problem = f"{who} makes {made}, but {needed} is needed here"
            yield ConfigIssue("config", where, problem, f"cite a job that makes {needed}")


class _JobStage:
    """A job of a pipeline as a stage, whose directory is the job's run directory."""

    offers: tuple[str, ...] = ()
    classifies = False

    def __init__(self, name: str, jobs: Mapping[str, JobConfig], run: RunDirectory, purse: Purse) -> None:
        self.name = name
        self._purse = purse
        self._jobs = jobs
        self._job = jobs[name]
        self._run = run
        self._numbers = {other: number for number, other in enumerate(jobs, start=1)}
        self._cited = dict(citations(values_of(self._job)))
        self.inputs = tuple(dict.fromkeys(citation.job for citation in self._cited.values()))

    # --- citations ------------------------------------------------------------------------------------------------

    def _resolve(self) -> Resolved:
        found: dict[KeyPath, str] = {}
        missing: dict[KeyPath, str] = {}
        for path, citation in self._cited.items():
            artifact = self._artifact(citation)
            if artifact is None:
                missing[path] = citation.job
            else:
                found[path] = str(artifact)
        values = replaced(values_of(self._job), found)
        waits_for = tuple(dict.fromkeys(missing.values()))
        return Resolved(type(self._job).model_validate(values), waits_for, tuple(missing))

    def _artifact(self, citation: Citation) -> Path | None:
        """Path of a cited artifact; None if the cited job has not made it."""
        directory = self._run.stage_directory(self._numbers[citation.job], citation.job)
        if Manifest.read(directory) is None:
            return None
        if citation.artifact == "student" or citation.artifact.startswith("student/"):
            path = directory / citation.artifact
            return path if path.exists() else None
        wanted = _NAMES.get(citation.artifact, citation.artifact)
        # The last stage that made it: a job may label rows, and a later stage write the filtered ones.
        for stage in reversed(RunDirectory(directory).stage_directories()):
            manifest = Manifest.read(stage)
            outputs = manifest.outputs if manifest is not None else {}
            if any(name == wanted or name.startswith(f"{wanted}/") for name in outputs):
                return stage / wanted
        return None

    def _foreseen(self) -> Resolved:
        """The job as far as it is known: in place of a student that is yet to be trained, the one it is made of."""
        resolved = self._resolve()
        if _STUDENT not in resolved.unresolved:
            return resolved
        base = untrained(self._cited[_STUDENT], self._jobs)
        if base is None:
            return resolved
        values = replaced(values_of(resolved.job), {_STUDENT: base})
        try:
            job = type(self._job).model_validate(values)
        except ValueError:
            # Not every job makes its student.
            return resolved
        unresolved = tuple(path for path in resolved.unresolved if path != _STUDENT)
        return Resolved(job, resolved.waits_for, unresolved)

    def _known_stages(self) -> list[Stage]:
        """The job's stages that are to run, if its models are known."""
        foreseen = self._foreseen()
        if any(path[0] == "models" for path in foreseen.unresolved):
            return []
        stages = stages_of(foreseen.job)
        if foreseen.waits_for:
            return stages
        run = RunDirectory(self._run.stage_directory(self._numbers[self.name], self.name))
        records = Runner.silent(run).completed(stages)
        return [stage for stage, record in zip(stages, records, strict=True) if record is None]

    # --- the `Stage` protocol -------------------------------------------------------------------------------------

    def preflight(self) -> list[ConfigIssue]:
        resolved = self._resolve()
        found = [issue for stage in stages_of(resolved.job) for issue in stage.preflight()]
        return self._own(found, resolved)

    def examine(self) -> list[ConfigIssue]:
        """The checks of the job's stages, before the first job of the pipeline starts."""
        stages = [stage for stage in self._known_stages() if isinstance(stage, Examining)]
        return self._own([issue for stage in stages for issue in stage.examine()], self._resolve())

    def foretell(self) -> list[str]:
        return [*self._purse.lines(self.name), *(line for stage in self._known_stages() for line in notes_of(stage))]

    def room(self) -> Needed:
        return room_of(self._known_stages())

    def _own(self, issues: Sequence[ConfigIssue], resolved: Resolved) -> list[ConfigIssue]:
        """Issues of the job's stages as the pipeline's, less those about what is not known yet."""
        waiting = {dotted(path) for path in resolved.unresolved}
        return [
            replace(issue, path=f"jobs.{self.name}.{issue.path}" if issue.path else f"jobs.{self.name}")
            for issue in issues
            if not concerns(issue.path, waiting)
        ]

    def fingerprint(self) -> dict[str, Any]:
        stages = stages_of(self._resolve().job)
        return {"job_type": self._job.job_type, "stages": {stage.name: stage.fingerprint() for stage in stages}}

    def estimate(self, directory: Path) -> Estimate:
        return Estimate()

    def planned(self, directory: Path, pending: Collection[str]) -> list[PlannedStage]:
        """The job's own stages. If artifacts that they cite do not exist yet, the estimates are limits."""
        first, *others = self._planned(directory, pending)
        return [replace(first, notes=(*self._purse.lines(self.name), *first.notes)), *others]

    def _planned(self, directory: Path, pending: Collection[str]) -> list[PlannedStage]:
        resolved = self._resolve()
        stages = stages_of(resolved.job)
        run = RunDirectory(directory)
        waits_for = [name for name in self.inputs if name in pending or name in resolved.waits_for]
        if waits_for:
            state = f"waits for {', '.join(waits_for)}"
            known = {stage.name: notes_of(stage) for stage in self._known_stages()}
            ahead = foreseen_estimates(self.name, self._jobs)
            return [
                PlannedStage(
                    f"{self.name}.{stage.name}",
                    state,
                    ahead.get(stage.name, Estimate()),
                    known.get(stage.name, ()),
                )
                for stage in stages
            ]
        runner = Runner.silent(run)
        standings = runner.standings(stages, runner.completed(stages))
        return [
            planned_stage(stage, run.stage_directory(number, stage.name), standing, f"{self.name}.")
            for number, (stage, standing) in enumerate(zip(stages, standings, strict=True), start=1)
        ]

    def preview(self, limit: int) -> list[Previewed]:
        """Previews of the job's stages, or a note that the job waits for others."""
        resolved = self._resolve()
        if resolved.waits_for:
            return [Previewed(self.name, note=f"waits for {', '.join(resolved.waits_for)}")]
        found = [shown for stage in stages_of(resolved.job) for shown in preview_of(stage, limit)]
        return [replace(shown, stage=f"{self.name}.{shown.stage}") for shown in found]

    def run(self, context: StageContext) -> StageResult:
        resolved = self._resolve()
        if resolved.waits_for:
            missing = ", ".join(dotted(path) for path in resolved.unresolved)
            raise DataError(f"{self.name}: {', '.join(resolved.waits_for)} did not make what {missing} cites")
        context.reporter.say(f"--- {self.name}: {resolved.job.job_type}")
        try:
            return _InnerRun(self.name, resolved.job, replace(context, budget=self._purse.budget)).execute()
        except ConfigError as error:
            raise ConfigError(self._own(error.issues, resolved)) from error
        except (DataError, ModelError, TeacherError) as error:
            # Its text speaks of `inference` and `dataset`: which job's, only the pipeline knows.
            error.args = (f"{self.name}: {error}", *error.args[1:])
            raise
        finally:
            self._purse.settle(self.name, context.directory)


class _InnerRun:
    """A job's run inside the pipeline's."""

    def __init__(self, name: str, job: JobConfig, context: StageContext) -> None:
        self._name = name
        self._job = job
        self._context = context
        self._directory = RunDirectory(context.directory)
        self._clock = Clock()
        self._records: Sequence[StageRecord] = ()

    def execute(self) -> StageResult:
        context = self._context
        reporter: Reporter = context.reporter.writing_to(self._directory.metrics)
        runner = Runner(
            self._directory,
            reporter,
            context.redactor,
            context.stop,
            context.said,
            stage_runner(self._job),
            context.budget,
        )
        stages = stages_of(self._job)
        runner.preflight(stages)
        records = runner.completed(stages)
        runner.examine(stages, records)
        runner.tell_standings(stages, records)
        runner.foretell(stages, records)
        written = self._job.model_dump(mode="json", by_alias=True, exclude={"schema_uri"})
        self._directory.write_config(written, written, context.redactor)
        self._directory.write_environment()
        try:
            runner.execute(stages, self._advance)
        except BaseException as error:
            stopped = "interrupted" if context.stop.requested else "failed"
            self._keep(stopped, error=f"{type(error).__name__}: {error}")
            raise
        return self._result(self._keep("done", exit_code_of(self._records, self._job.max_rejected_share)))

    def _advance(self, records: Sequence[StageRecord]) -> None:
        self._records = list(records)
        self._keep("running")

    def _keep(self, status: str, code: int | None = None, error: str | None = None) -> dict[str, Any]:
        about = {"job_type": self._job.job_type, "name": self._name, "resume": "the pipeline's own command"}
        summary = summarise(about, self._records, self._clock, status, code, error)
        self._directory.write_summary(summary, self._context.redactor)
        return summary

    def _result(self, summary: dict[str, Any]) -> StageResult:
        outputs = [
            str((record.directory / name).relative_to(self._context.directory))
            for record in self._records
            for name in record.manifest.outputs
        ]
        rows = summary["rows"]
        tokens: dict[str, int] = {}
        for record in self._records:
            for kind, count in record.manifest.tokens.items():
                tokens[kind] = tokens.get(kind, 0) + count
        reported = {name: summary[name] for name in ("job_type", "exit_code", "rows", "metrics")}
        return StageResult(
            outputs,
            RowCounts(rows["entered"], rows["accepted"], rows["rejected_by_reason"]),
            tokens=tokens,
            metrics={JOB: reported},
        )
