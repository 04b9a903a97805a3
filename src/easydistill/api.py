"""The Python API of easydistill, which the command line uses too: validate, plan, preview, run, retry.

`run` takes a config and returns a `RunResult`; all files are in the run directory (see `engine/run_directory.py`).
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.job import JobConfig
from easydistill.config.location import is_remote
from easydistill.config.reading import LoadedConfig, load_config
from easydistill.config.reading.typed import as_source
from easydistill.data.answers_cache import using
from easydistill.engine.events import OnProgress
from easydistill.engine.progress import Reporter, duration
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.runner import Runner
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import Composite, PlannedStage, Previewed, planned_stage, preview_of
from easydistill.engine.summary import JOB
from easydistill.errors import ConfigError, ConfigIssue, DataError
from easydistill.job_run import LOGGED_IN, JobRun
from easydistill.jobs import JOBS, stages_of
from easydistill.jobs._row_paths import absent_paths as absent
from easydistill.jobs._row_paths import launch_issues, row_path_issues
from easydistill.jobs._row_paths import unchecked_paths as unchecked
from easydistill.launch.place import check_place
from easydistill.planning.hours import with_hours
from easydistill.results import RunResult as RunResult

if TYPE_CHECKING:
    from easydistill.asking.answers_exchange import CacheCheck, CacheFacts, Imported
    from easydistill.doctor.finding import Finding
    from easydistill.migration import Migration
    from easydistill.signals.verify import Verification

Source = str | Path | Mapping[str, Any] | JobConfig
"""A config: a file's path, a recipe's name, a mapping, or a typed job."""
_BUG = "not an error in the config: a bug of easydistill or of a library; the traceback is above"


class _JobClasses(Mapping[str, type[JobConfig]]):
    """The config class of every job type, loaded on first access."""

    def __getitem__(self, name: str) -> type[JobConfig]:
        job: type[JobConfig] = JOBS.module(name).Job
        return job

    def __iter__(self) -> Iterator[str]:
        # A broken extension affects only configs that name it.
        return iter(JOBS.loaded())

    def __len__(self) -> int:
        return len(JOBS.loaded())


def job_classes() -> Mapping[str, type[JobConfig]]:
    """The config class of every job type."""
    return _JobClasses()


def load(config: Source, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read and validate a config; see `config.reading.load_config`."""
    return load_config(as_source(config), job_classes, overrides)


def validate(config: Source, overrides: Sequence[str] = ()) -> JobConfig:
    """Check a config without network and models. Of files of rows, names and first bytes are looked at, and as far as
    that is cheap, whether they are whole. They may be missing, as a config may be checked on another machine; see
    `absent_paths`.

    Raises:
        ConfigError: lists every issue.
    """
    job = load(config, overrides).job
    check_launch(job)
    check_row_paths(job)
    return job


def check_launch(job: JobConfig) -> None:
    """Compare a loaded config's `launch` with what the environment's launcher says, as `validate` does.

    Raises:
        ConfigError: they contradict each other.
    """
    check_place(job, os.environ)


def check_row_paths(job: JobConfig) -> None:
    """Look at a loaded config's paths of rows, and into its config of DeepSpeed's, as `validate` does.

    Raises:
        ConfigError: names that no reader knows, files that are not what they say, settings that contradict each other.
    """
    if issues := row_path_issues(job) + launch_issues(job):
        raise ConfigError(issues)


def absent_paths(job: JobConfig) -> list[ConfigIssue]:
    """What a loaded config names and is not on this machine: files of rows, templates, directories of models."""
    return absent(job)


def unchecked_paths(job: JobConfig) -> list[tuple[str, str]]:
    """(key, location) of rows that a loaded config names and that are fetched: whether they are there is not known."""
    return unchecked(job)


def migrate(old: str | Path) -> Migration:
    """Translate a config of EasyDistill 1 or 2 to this version. Writes nothing.

    Raises:
        ConfigError: it cannot be read, or something in it has no equivalent here; every reason is listed.
    """
    from easydistill.migration import migrate as migrated

    return migrated(Path(old), job_classes())


def plan(config: Source, overrides: Sequence[str] = ()) -> list[PlannedStage]:
    """What `run` would do now, and what is already done. Reads data files and tokenizers, loads no model.

    Raises:
        ConfigError: the config is wrong, or something it names is missing.
    """
    loaded = load(config, overrides)
    check_launch(loaded.job)
    loaded = _as_kept(loaded)
    run_directory = RunDirectory(loaded.run_directory)
    with using(loaded.job.answers_cache, make=False):
        return _planned(loaded, run_directory)


def _planned(loaded: LoadedConfig, run_directory: RunDirectory) -> list[PlannedStage]:
    stages = stages_of(loaded.job)
    runner = Runner.silent(run_directory)
    runner.preflight(stages)
    records = runner.completed(stages)
    pending = [stage.name for stage, record in zip(stages, records, strict=True) if record is None]
    planned: list[PlannedStage] = []
    for number, (stage, standing) in enumerate(zip(stages, runner.standings(stages, records), strict=True), start=1):
        directory = run_directory.stage_directory(number, stage.name)
        if isinstance(stage, Composite):
            planned += stage.planned(directory, pending)
        else:
            planned.append(planned_stage(stage, directory, standing))
    return with_hours(planned)


def _as_kept(loaded: LoadedConfig) -> LoadedConfig:
    """A config whose run directory shows the run as its store has it, if it is kept in one."""
    job = loaded.job
    if job.remote is None:
        return loaded
    from easydistill.remote.fetch import kept_copy

    storage = job.storage.model_copy(update={"working_directory": str(kept_copy(job.remote, job.storage.options))})
    return replace(loaded, job=job.model_copy(update={"storage": storage}))


def _local(path: str | Path, *, light: bool = False) -> Path:
    """A directory of this machine: the path's own, or a copy of what it names in a store."""
    if not is_remote(str(path)):
        return Path(path)
    from easydistill.remote.fetch import fetched, run_around

    run, inside = run_around(str(path))
    return fetched(run, light=light, under=inside) / inside


def fetch(remote: str, local: str | Path, *, options: Mapping[str, Any] | None = None) -> Path:
    """Copy a run from an object store to a directory, every byte checked; see `remote/fetch.py`.

    Args:
        remote: the run's `output_dir`, such as `s3://bucket/runs/kd`.
        options: as `storage.options`.

    Raises:
        DataError: no run is there, its objects are damaged, or the directory has files of its own.
        StoreError: the store cannot be read.
    """
    from easydistill.remote.fetch import fetch as fetch_run

    return fetch_run(remote, local, options=options)


def report(run: str | Path) -> Path:
    """Make the report of a run from its files again; of a run in a store, in a copy on this machine.

    Raises:
        DataError: no run is there.
    """
    from easydistill.report.build import build_report

    directory = _local(run, light=True)
    if not (directory / "summary.json").is_file():
        raise DataError(f"{run}: no run is here (no summary.json)\n    → name a run directory, e.g. runs/kd")
    return build_report(directory)


def preview(config: Source, overrides: Sequence[str] = (), *, rows: int = 5) -> list[Previewed]:
    """The first messages that a run would send for its first `rows` rows. Sends nothing, loads no model.

    Raises:
        ConfigError: the config is wrong, or something it names is missing.
    """
    loaded = load(config, overrides)
    check_launch(loaded.job)
    stages = stages_of(loaded.job)
    Runner.silent(RunDirectory(loaded.run_directory)).preflight(stages)
    return [shown for stage in stages for shown in preview_of(stage, rows)]


def run(
    config: Source,
    overrides: Sequence[str] = (),
    *,
    quiet: bool = False,
    node_rank: int | None = None,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Run a job to its end, resuming from what an earlier run of it left.

    Args:
        config: path of a config file, the config as a mapping, or a typed job.
        overrides: `dotted.path=value`, applied on top of the config.
        quiet: print nothing.
        node_rank: which of several machines (`launch.nodes`) this is, from 0; None: a launcher says it, or it is alone.
        replace: drop a student that was trained here with other settings, which is otherwise kept in `previous/`.
        on_progress: is called with what happens: an `Event` of `easydistill.engine.events`.

    Raises:
        ConfigError: the config cannot be run; nothing was started.
        Interrupted: stopped by Ctrl-C, or by `on_progress`; the same call resumes.
        RunDirectoryBusy: another run, in this process or another one, has the directory.
        EasyDistillError: the run failed; finished work is kept, and the same call resumes.
    """
    loaded = load(config, overrides)
    return JobRun(loaded, quiet, node_rank, on_progress, replace=replace).execute()


def retry(
    config: Source,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    quiet: bool = False,
    node_rank: int | None = None,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Ask again for rejected rows, then run the job from there; everything else is kept. Raises what `run` raises.

    Args:
        only: reasons as in `rejected.jsonl`, or `parse` for malformed replies; by default those for which asking again
            may help: transient errors, empty answers, malformed replies.
    """
    return JobRun(load(config, overrides), quiet, node_rank, on_progress, replace=replace).execute(only)


def result(run: str | Path) -> RunResult:
    """The result of an earlier run, or of one that goes on elsewhere; of a run in a store, from a copy on this machine.

    Args:
        run: its directory, or its place in a store.

    Raises:
        DataError: no run is there.
        StoreError: the store cannot be read.
    """
    return RunResult.of(_local(run, light=False))


def explain_unexpected(error: BaseException, config: Source | None = None, overrides: Sequence[str] = ()) -> str:
    """A library's error (or a bug) in one paragraph, with the place of its traceback and secrets hidden.

    If the run's log has the traceback, the text names the log; otherwise the text begins with the traceback.
    """
    redactor = Redactor()
    if config is not None:
        try:
            redactor.register_config(load(config, overrides).job)
        except Exception:
            # Reading the config failed, so its secrets are unknown.
            calls = "".join(traceback.format_tb(error.__traceback__))
            return f"{calls}error: {type(error).__name__} while the config was read\n    → {_BUG}"
    message = f"{type(error).__name__}: {error}"
    log = getattr(error, LOGGED_IN, None)
    if log is not None:
        return redactor.text(f"error: {message}\n    → the traceback is in {log}; the same command resumes the run")
    return redactor.text(f"{''.join(traceback.format_exception(error))}error: {message}\n    → {_BUG}")


def job_schema() -> dict[str, Any]:
    """JSON Schema of every job, for editors."""
    classes = job_classes()
    definitions: dict[str, Any] = {}
    for name, cls in classes.items():
        schema = cls.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
        for inner, value in schema.pop("$defs", {}).items():
            definitions[f"{name}.{inner}"] = value
        definitions[name] = schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "EasyDistill job",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in classes],
        "discriminator": {"propertyName": "job_type"},
        "$defs": definitions,
    }


def compare(runs: Sequence[str | Path], output: str | Path = "compare.html") -> Path:
    """Set runs side by side on a page, and as Markdown beside it. Reads only their files; they may be unfinished.

    Raises:
        DataError: there are not two different runs.
    """
    from easydistill.report.comparison.page import build_comparison

    return build_comparison([_local(run, light=True) for run in runs], Path(output))


def doctor(*, measure: bool = True) -> Iterator[Finding]:
    """What is installed, what this machine has and how fast it is, and what to expect of it; see `doctor/`.

    Args:
        measure: without it nothing is measured, which takes up to a minute.
    """
    from easydistill.doctor.check import findings

    return findings(measure=measure)


def inspect_signals(directory: str | Path) -> dict[str, Any]:
    """Facts about a store of teacher signals; see `signals/verify.py`."""
    from easydistill.signals.verify import inspect

    return inspect(_local(directory))


def verify_signals(
    directory: str | Path,
    *,
    tokens: int = 2000,
    tolerance: float | None = None,
    seed: int = 0,
    teacher: str | None = None,
) -> Verification:
    """Score random tokens of a store again with the live teacher and compare.

    Args:
        directory: the store.
        tokens: least number of tokens to score.
        tolerance: largest accepted difference of a target's log-probability, in nats; by default as the teacher's data
            type allows.
        seed: for choosing the rows.
        teacher: the teacher's new location, if it has moved.

    Raises:
        DataError: there is no such store, or it is damaged.
    """
    from easydistill.methods.distil.rescore import scorer_of_store
    from easydistill.signals.store import SignalStore

    store = SignalStore(_local(directory))
    reporter = Reporter(None)
    scorer, usual = scorer_of_store(store, teacher)
    from easydistill.signals.verify import verify

    try:
        with reporter.task("Verifying", tokens, unit="tokens") as task:
            return verify(store, scorer, tokens, usual if tolerance is None else tolerance, seed, task.advance)
    finally:
        scorer.close()


def answers_info(cache: str | Path) -> CacheFacts:
    """What an answers cache holds; see docs/answers_cache.md.

    Raises:
        DataError: there is none.
    """
    from easydistill.asking.answers_exchange import facts_of

    return facts_of(cache)


def answers_verify(cache: str | Path) -> CacheCheck:
    """Read all of an answers cache and compare it with its checksums. Raises what `answers_info` raises."""
    from easydistill.asking.answers_exchange import check

    return check(cache)


def answers_export(cache: str | Path, file: str | Path, *, signals: bool = False) -> int:
    """Write an answers cache to one file, for another machine; returns the number of answers.

    Args:
        signals: also the teachers' signals.

    Raises:
        DataError: there is no cache, or the file exists.
    """
    from easydistill.asking.answers_exchange import export

    return export(cache, file, signals=signals)


def answers_import(cache: str | Path, source: str | Path) -> Imported:
    """Put answers into a cache, which is made if it is missing; what it has already stays.

    Args:
        source: an exported file, another cache, or the directory of a run.

    Raises:
        DataError: the source is none of these, or damaged; nothing was changed.
    """
    from easydistill.asking.answers_exchange import import_into

    return import_into(cache, source)


def summary_lines(result: RunResult) -> list[str]:
    """A finished run in words: metrics before and after, time, where the files are."""
    lines = _metric_lines(result.metrics.get("before"), result.metrics.get("after"))
    stages = result.summary.get("stages", {})
    if stages:
        lines.append("time: " + ", ".join(f"{name} {duration(stage['seconds'])}" for name, stage in stages.items()))
    taken = result.summary.get("metrics", {}).get("bytes_per_token")
    if taken is not None:
        lines.append(f"teacher signals: {taken:.1f} bytes per token")
    from easydistill.report.synthesis import is_synthesis
    from easydistill.report.synthesis_words import end_lines

    rows = result.summary.get("rows", {})
    if rows.get("rejected") and not all(is_synthesis(stage["metrics"]) for stage in stages.values()):
        reasons = ", ".join(f"{reason} {count}" for reason, count in rows["rejected_by_reason"].items())
        # A pipeline's jobs have candidates of their own.
        of = "of all jobs" if any(JOB in stage["metrics"] for stage in stages.values()) else f"of {rows['entered']}"
        lines.append(f"rejected rows: {rows['rejected']} {of} ({reasons})")
    if result.student.is_dir():
        lines.append(f"student: {result.student}")
    lines += end_lines(result.run_directory)
    lines.append(f"report:  {result.report}")
    return lines


def _metric_lines(before: dict[str, float | None] | None, after: dict[str, float | None] | None) -> list[str]:
    if not before or not after:
        return []
    width = max(18, *(len(name) + 2 for name in after))
    lines, missing = [f"{'held-out metric':<{width}}{'before':>10}{'after':>10}{'change':>10}"], list[str]()
    for name, new in after.items():
        old = before.get(name)
        if old is None or new is None:
            missing.append(name)
            continue
        # A relative change between numbers of different sign means nothing.
        change = f"{(new - old) / abs(old):+.0%}" if old and old * new >= 0 else ""
        lines.append(f"{name:<{width}}{old:>10.4f}{new:>10.4f}{change:>10}")
    told = [f"not measured: {', '.join(missing)} (the report says why)"] if missing else []
    return (lines if len(lines) > 1 else []) + told
