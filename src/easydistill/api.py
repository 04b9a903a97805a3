"""The Python face of easydistill, and what the command line calls: validate, plan, run.

`run` takes a config and gives a `RunResult`; all files are in the run directory (see `engine/run_directory.py`).
"""

from __future__ import annotations

import datetime
import importlib.util
import logging
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.config.job import JobConfig
from easydistill.config.load import LoadedConfig, load_config
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter, duration
from easydistill.engine.run_directory import LOGGER, RunDirectory
from easydistill.engine.runner import Runner, StageRecord
from easydistill.engine.secrets import MASK, Redactor
from easydistill.engine.stage import Estimate, Stage
from easydistill.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TOO_MANY_REJECTED,
    EasyDistillError,
    Interrupted,
)
from easydistill.jobs import JOBS

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


@dataclass(frozen=True)
class PlannedStage:
    """A stage as `plan` shows it."""

    name: str
    state: str
    """`done`, `pending`."""
    estimate: Estimate


class _JobClasses(Mapping[str, type[JobConfig]]):
    """The config class of every job type, each loaded when it is asked for."""

    def __getitem__(self, name: str) -> type[JobConfig]:
        job: type[JobConfig] = JOBS.module(name).Job
        return job

    def __iter__(self) -> Iterator[str]:
        return iter(JOBS.names())

    def __len__(self) -> int:
        return len(JOBS.names())


def job_classes() -> Mapping[str, type[JobConfig]]:
    """The config class of every job type."""
    return _JobClasses()


def load(config: Source, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read and validate a config; see `config.load.load_config`."""
    return load_config(config, job_classes, overrides)


def stages_of(job: JobConfig) -> list[Stage]:
    """A job's stages, in order."""
    stages: list[Stage] = JOBS.module(job.job_type).plan(job)
    return stages


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
    runner = Runner(run_directory, Reporter(None, quiet=True), Redactor(), StopSignal())
    runner.preflight(stages)
    records = runner.completed(stages)
    return [
        PlannedStage(
            stage.name,
            "done" if record is not None else "pending",
            stage.estimate(run_directory.stage_directory(number, stage.name)),
        )
        for number, (stage, record) in enumerate(zip(stages, records, strict=True), start=1)
    ]


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


class _Run:
    def __init__(self, loaded: LoadedConfig, quiet: bool) -> None:
        self._loaded = loaded
        self._directory = RunDirectory(loaded.run_directory)
        self._redactor = Redactor()
        self._redactor.register_config(loaded.job)
        self._reporter = Reporter(self._directory.metrics, quiet=quiet)
        self._stop = StopSignal()
        self._started = datetime.datetime.now(datetime.UTC)
        self._clock = time.monotonic()
        self._records: list[StageRecord] = []

    def execute(self) -> RunResult:
        stages = stages_of(self._loaded.job)
        runner = Runner(self._directory, self._reporter, self._redactor, self._stop)
        runner.preflight(stages)
        with self._directory.locked():
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
        share = self._rejected_share()
        code = EXIT_TOO_MANY_REJECTED if share > self._loaded.job.dataset.max_rejected_share else EXIT_OK
        summary = self._finish("done", code, None)
        return self._result(summary, fresh=True)

    def _keep(self, records: list[StageRecord]) -> None:
        self._records = list(records)
        self._directory.write_summary(self._summary("running", None, None), self._redactor)

    def _finish(self, status: str, code: int, error: str | None) -> dict[str, Any]:
        from easydistill.report.build import build_report
        from easydistill.report.model_card import write_model_card

        summary = self._summary(status, code, error)
        self._directory.write_summary(summary, self._redactor)
        write_model_card(self._directory.path)
        build_report(self._directory.path)
        LOGGER.info("run ends: %s, exit code %s", status, code)
        return summary

    # --- what summary.json says -----------------------------------------------------------------------------

    def _summary(self, status: str, code: int | None, error: str | None) -> dict[str, Any]:
        rows = self._rows()
        return {
            "job_type": self._loaded.job.job_type,
            "name": self._loaded.name,
            "status": status,
            "exit_code": code,
            "error": error,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds") if code is not None else None,
            "seconds": round(time.monotonic() - self._clock, 3),
            "stages": {
                record.name: {
                    "status": record.status,
                    "seconds": record.manifest.seconds,
                    "rows": {
                        "entered": record.manifest.rows.entered,
                        "left": record.manifest.rows.left,
                        "rejected": record.manifest.rows.rejected,
                    },
                    "tokens": record.manifest.tokens,
                    "metrics": record.manifest.metrics,
                }
                for record in self._records
            },
            "rows": rows,
            "metrics": self._metrics(),
            "resume": self._resume_command(),
        }

    def _metrics(self) -> dict[str, Any]:
        """Held-out metrics before and after; of a white-box job also what a token's signal takes on disk."""
        found: dict[str, Any] = {}
        for record in self._records:
            metrics = record.manifest.metrics
            if "after" in metrics:
                found |= metrics
            if "bytes_per_token" in metrics:
                found["bytes_per_token"] = metrics["bytes_per_token"]
        return found

    def _rows(self) -> dict[str, Any]:
        """Rows as the job's user counts them: what came in, what was good enough to train on, what was not."""
        # Scoring and evaluation repeat rows that are counted elsewhere.
        counted = [record.manifest for record in self._records if record.name not in {"rollout", "score", "evaluate"}]
        reasons: dict[str, int] = {}
        for manifest in counted:
            for reason, count in manifest.rows.rejected.items():
                reasons[reason] = reasons.get(reason, 0) + count
        entered = counted[0].rows.entered if counted else 0
        rejected = sum(reasons.values())
        return {
            "entered": entered,
            "accepted": entered - rejected,
            "rejected": rejected,
            "rejected_share": round(rejected / entered, 6) if entered else 0.0,
            "rejected_by_reason": reasons,
        }

    def _rejected_share(self) -> float:
        rows = self._rows()
        return rows["rejected"] / rows["entered"] if rows["entered"] else 0.0

    def _source(self) -> dict[str, Any]:
        """The config as written, with every secret key's value hidden even where it is too short to search for."""
        source: dict[str, Any] = dict(self._loaded.source)
        inference = source.get("inference")
        if isinstance(inference, dict) and "api_key" in inference:
            key = str(inference["api_key"])
            source["inference"] = {**inference, "api_key": key if key.startswith("${env:") else MASK}
        return source

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
    from easydistill.signals.store import SignalStore
    from easydistill.stages.score import scorer_of_store

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
                change = f"{(new - old) / old:+.0%}" if old else ""
                lines.append(f"{name:<18}{old:>10.4f}{new:>10.4f}{change:>10}")
    stages = result.summary.get("stages", {})
    if stages:
        lines.append("time: " + ", ".join(f"{name} {duration(stage['seconds'])}" for name, stage in stages.items()))
    taken = result.summary.get("metrics", {}).get("bytes_per_token")
    if taken is not None:
        lines.append(f"teacher signals: {taken:.1f} bytes a token")
    rows = result.summary.get("rows", {})
    if rows.get("rejected"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in rows["rejected_by_reason"].items())
        lines.append(f"rejected rows: {rows['rejected']} of {rows['entered']} ({reasons})")
    if result.student.is_dir():
        lines.append(f"student: {result.student}")
    rows = sorted(result.run_directory.glob("stages/*-synthesise/labeled.json"))
    lines += [f"rows:    {path}" for path in rows]
    lines.append(f"report:  {result.report}")
    return lines
