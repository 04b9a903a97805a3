"""The Python face of easydistill, and what the command line calls: validate, plan, run.

`run` takes a config and gives a `RunResult`; all files are in the run directory (see `engine/run_directory.py`).
"""

from __future__ import annotations

import importlib.util
import logging
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.job import JobConfig
from easydistill.config.load import LoadedConfig, load_config
from easydistill.data.files import show_directory
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter, duration
from easydistill.engine.run_directory import LOGGER, RunDirectory
from easydistill.engine.runner import Runner, StageRecord
from easydistill.engine.secrets import MASK, Redactor, hide_secrets
from easydistill.engine.stage import Composite, PlannedStage, Previewed, Stage, preview_of
from easydistill.engine.summary import Clock, exit_code_of, summarise
from easydistill.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EasyDistillError,
    Interrupted,
)
from easydistill.jobs import JOBS, stages_of

if TYPE_CHECKING:
    from easydistill.signals.verify import Verification

Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run_directory: Path
    exit_code: int
    """0, or 3 where more rows were rejected than `dataset.max_rejected_share` allows."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """`before` and `after`: metric → value."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What `summary.json` holds."""
    fresh: bool = True
    """False where everything was there already."""

    @property
    def student(self) -> Path:
        """Directory of the trained student."""
        return self.run_directory / "student"

    @property
    def report(self) -> Path:
        return self.run_directory / "report.html"


class _JobClasses(Mapping[str, type[JobConfig]]):
    """The config class of every job type, each loaded when it is asked for."""

    def __getitem__(self, name: str) -> type[JobConfig]:
        job: type[JobConfig] = JOBS.module(name).Job
        return job

    def __iter__(self) -> Iterator[str]:
        # A broken extension harms only a config that names it.
        return iter(JOBS.loaded())

    def __len__(self) -> int:
        return len(JOBS.loaded())


def job_classes() -> Mapping[str, type[JobConfig]]:
    """The config class of every job type."""
    return _JobClasses()


def load(config: Source, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read and validate a config; see `config.load.load_config`."""
    return load_config(config, job_classes, overrides)


def validate(config: Source, overrides: Sequence[str] = ()) -> JobConfig:
    """Check a config without network, models or data.

    Raises:
        ConfigError: with every issue.
    """
    return load(config, overrides).job


def plan(config: Source, overrides: Sequence[str] = ()) -> list[PlannedStage]:
    """What `run` would do now, and what is done already. Reads data files, no models.

    Raises:
        ConfigError: the config is wrong, or something it names is missing.
    """
    loaded = load(config, overrides)
    run_directory = RunDirectory(loaded.run_directory)
    stages = stages_of(loaded.job)
    runner = Runner.silent(run_directory)
    runner.preflight(stages)
    records = runner.completed(stages)
    pending = [stage.name for stage, record in zip(stages, records, strict=True) if record is None]
    planned: list[PlannedStage] = []
    for number, (stage, record) in enumerate(zip(stages, records, strict=True), start=1):
        directory = run_directory.stage_directory(number, stage.name)
        if isinstance(stage, Composite):
            planned += stage.planned(directory, pending)
        else:
            state = "done" if record is not None else "pending"
            planned.append(PlannedStage(stage.name, state, stage.estimate(directory)))
    return planned


def preview(config: Source, overrides: Sequence[str] = (), *, rows: int = 5) -> list[Previewed]:
    """What a run would ask first about the first `rows` rows, as it would be sent. Asks nobody, loads no model.

    Raises:
        ConfigError: the config is wrong, or something it names is missing.
    """
    loaded = load(config, overrides)
    stages = stages_of(loaded.job)
    Runner.silent(RunDirectory(loaded.run_directory)).preflight(stages)
    return [shown for stage in stages for shown in preview_of(stage, rows)]


def run(config: Source, overrides: Sequence[str] = (), *, quiet: bool = False) -> RunResult:
    """Run a job to its end, going on from whatever an earlier run of it left.

    Args:
        config: path of a config file, or the config as a mapping.
        overrides: `dotted.path=value`, over the config.
        quiet: show nothing.

    Raises:
        ConfigError: the config cannot be run; nothing was started.
        Interrupted: stopped by Ctrl-C; the same call goes on.
        EasyDistillError: it failed; what was finished is kept, and the same call goes on.
    """
    loaded = load(config, overrides)
    return _Run(loaded, quiet).execute()


def retry(config: Source, overrides: Sequence[str] = (), *, only: Sequence[str] = (), quiet: bool = False) -> RunResult:
    """Ask again what brought no row, and run the job from there; all else is left as it is. Raises as `run`.

    Args:
        only: reasons as in `rejected.jsonl`, or `parse` for replies that were malformed; without any, those for which
            asking again may help: passing faults, empty answers, malformed replies.
    """
    return _Run(load(config, overrides), quiet).execute(only)


class _Run:
    def __init__(self, loaded: LoadedConfig, quiet: bool) -> None:
        self._loaded = loaded
        self._directory = RunDirectory(loaded.run_directory)
        self._redactor = Redactor()
        self._redactor.register_config(loaded.job)
        self._reporter = Reporter(self._directory.metrics, quiet=quiet)
        self._stop = StopSignal()
        self._clock = Clock()
        self._records: list[StageRecord] = []

    def execute(self, again: Sequence[str] | None = None) -> RunResult:
        """Run.

        Args:
            again: reasons for which rejected rows are asked again first; None where nothing is.
        """
        stages = stages_of(self._loaded.job)
        runner = Runner(self._directory, self._reporter, self._redactor, self._stop)
        runner.preflight(stages)
        with self._directory.locked():
            if again is not None:
                from easydistill.asking.retry import mark_rejected
                from easydistill.synthesis.operators import rejection_reasons

                mark_rejected(self._directory.path, again, self._reporter.say, rejection_reasons)
            records = runner.completed(stages)
            found = self._directory.read_summary()
            if all(records) and found is not None and found["status"] == "done" and self._directory.report.is_file():
                self._reporter.say(f"everything is done already: {self._directory.report}")
                return self._result(found, fresh=False)
            runner.examine(stages, records)
            with self._directory.logging(self._redactor):
                return self._execute(runner, stages)

    def _execute(self, runner: Runner, stages: list[Stage]) -> RunResult:
        resolved = self._loaded.job.model_dump(mode="json", by_alias=True, exclude={"schema_uri"})
        self._directory.write_config(self._source(), resolved, self._redactor)
        self._directory.write_environment()
        LOGGER.info("run of %s starts", self._loaded.job.job_type)
        try:
            with self._stop.listening():
                self._records = runner.execute(stages, self._keep)
        except Interrupted as error:
            self._finish("interrupted", EXIT_INTERRUPTED, str(error))
            error.args = (f"stopped; what is finished is kept. To go on:\n    {self._resume_command()}",)
            raise
        except BaseException as error:
            code = error.exit_code if isinstance(error, EasyDistillError) else EXIT_FAILED
            LOGGER.log(logging.ERROR, "failed: %s\n%s", error, traceback.format_exc())
            self._finish("failed", code, f"{type(error).__name__}: {error}")
            raise
        code = exit_code_of(self._records, self._loaded.job.max_rejected_share)
        summary = self._finish("done", code, None)
        return self._result(summary, fresh=True)

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
        LOGGER.info("run ends: %s, exit code %s", status, code)
        return summary

    def _inner_runs(self) -> list[RunDirectory]:
        """The jobs of a pipeline, in its order."""
        runs = [RunDirectory(path) for path in self._directory.stage_directories()]
        return [run for run in runs if run.summary_path.is_file()]

    def _source(self) -> dict[str, Any]:
        """The config as written, with every secret key's value hidden even where it is too short to search for."""
        hidden: dict[str, Any] = hide_secrets(self._loaded.source)
        return hidden

    def _resume_command(self) -> str:
        if self._loaded.path is None:
            return "easydistill.run(…) with the same config"
        parts = ["easydistill", "run", str(self._loaded.path)]
        for override in self._loaded.overrides:
            name = override.partition("=")[0]
            hidden = name.strip().endswith("api_key")
            parts += ["--set", f"{name}={MASK}" if hidden else override]
        return self._redactor.text(shlex.join(parts))

    def _result(self, summary: dict[str, Any], *, fresh: bool) -> RunResult:
        return RunResult(
            self._directory.path,
            int(summary["exit_code"] or EXIT_OK),
            {name: summary["metrics"][name] for name in ("before", "after") if name in summary["metrics"]},
            summary,
            fresh,
        )


def explain_unexpected(error: BaseException, config: Source, overrides: Sequence[str]) -> str:
    """A library's error (or a bug) in one paragraph, secrets hidden; the traceback is in the run's log."""
    loaded = load(config, overrides)
    redactor = Redactor()
    redactor.register_config(loaded.job)
    log = loaded.run_directory / "log.txt"
    return redactor.text(
        f"{type(error).__name__}: {error}\n    → the traceback is in {log}; the same command goes on from here"
    )


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


def doctor() -> list[tuple[str, str, bool]]:
    """(what, state, good) for everything a run may need on this machine."""
    from easydistill.engine.run_directory import package_versions

    lines = [("python", sys.version.split()[0], sys.version_info >= (3, 11))]
    lines += [(name, version, True) for name, version in package_versions().items()]
    for extra, modules in (
        ("train", ("torch", "transformers", "accelerate", "peft", "gguf")),
        ("trl", ("trl",)),
        ("synth", ("rensa", "rapidfuzz", "math_verify", "selectolax", "pypdf")),
        ("vllm", ("vllm",)),
    ):
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = (
            f"missing: {', '.join(missing)}  (pip install 'easydistill-toolkit[{extra}]')" if missing else "installed"
        )
        lines.append((f"extra {extra}", state, not missing))
    if importlib.util.find_spec("torch") is not None:
        from easydistill.models.loading import computes_well_in_bf16, device

        on = device()
        numbers = "bfloat16" if computes_well_in_bf16(on) else "float32"
        lines.append(("device", f"{on.type}, computes in {numbers}", True))
    return lines


def inspect_signals(directory: str | Path) -> dict[str, Any]:
    """What is in a store of teacher signals; see `signals/verify.py`."""
    from easydistill.signals.verify import inspect

    return inspect(Path(directory))


def verify_signals(
    directory: str | Path,
    *,
    tokens: int = 2000,
    tolerance: float | None = None,
    seed: int = 0,
    teacher: str | None = None,
) -> Verification:
    """Score random tokens of a store again with the live teacher, and compare.

    Args:
        directory: the store.
        tokens: how many tokens at least.
        tolerance: nats by which a realised log-probability may differ; by default as the number type allows.
        seed: which rows are taken.
        teacher: where the teacher is now, if it has moved.

    Raises:
        DataError: there is no such store, or it is damaged.
    """
    from easydistill.methods.distil.rescore import scorer_of_store
    from easydistill.signals.store import SignalStore

    store = SignalStore(Path(directory))
    reporter = Reporter(None)
    scorer, usual = scorer_of_store(store, teacher)
    from easydistill.signals.verify import verify

    try:
        with reporter.task("Verifying", tokens, unit="tokens") as task:
            return verify(store, scorer, tokens, usual if tolerance is None else tolerance, seed, task.advance)
    finally:
        scorer.close()


def summary_lines(result: RunResult) -> list[str]:
    """The end of a run in words: before/after, time, where things are."""
    lines: list[str] = []
    before, after = result.metrics.get("before"), result.metrics.get("after")
    if before and after:
        lines.append(f"{'held-out metric':<18}{'before':>10}{'after':>10}{'change':>10}")
        for name in after:
            old, new = before.get(name), after[name]
            if old is None or new is None:
                lines.append(f"{name:<18}{'n/a':>10}{'n/a':>10}")
            else:
                # Between numbers of different sign there is no such thing.
                change = f"{(new - old) / abs(old):+.0%}" if old and old * new >= 0 else ""
                lines.append(f"{name:<18}{old:>10.4f}{new:>10.4f}{change:>10}")
    stages = result.summary.get("stages", {})
    if stages:
        lines.append("time: " + ", ".join(f"{name} {duration(stage['seconds'])}" for name, stage in stages.items()))
    taken = result.summary.get("metrics", {}).get("bytes_per_token")
    if taken is not None:
        lines.append(f"teacher signals: {taken:.1f} bytes a token")
    from easydistill.report.synthesis import is_synthesis
    from easydistill.report.synthesis_words import end_lines

    rows = result.summary.get("rows", {})
    if rows.get("rejected") and not all(is_synthesis(stage["metrics"]) for stage in stages.values()):
        reasons = ", ".join(f"{reason} {count}" for reason, count in rows["rejected_by_reason"].items())
        lines.append(f"rejected rows: {rows['rejected']} of {rows['entered']} ({reasons})")
    if result.student.is_dir():
        lines.append(f"student: {result.student}")
    lines += end_lines(result.run_directory)
    lines.append(f"report:  {result.report}")
    return lines
