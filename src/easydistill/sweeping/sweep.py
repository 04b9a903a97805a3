"""Runs the variants of a config one after another, on one answers cache, and compares them.

    <output_dir>/<variant>/      the run directory of each
    <output_dir>/answers_cache/  what teachers were asked and what they scored, unless the config names a folder itself
    <output_dir>/sweep.json      the variants and what came of them
    <output_dir>/compare.html    the comparison

Every variant is checked before the first one starts. The same command goes on where it was stopped: finished variants
are kept, and more values only add some. A variant that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill import api
from easydistill.config.location import is_remote
from easydistill.config.reading import LoadedConfig
from easydistill.config.reading.diagnose import closest
from easydistill.config.reading.typed import as_source
from easydistill.data.files import write_json
from easydistill.engine.run_directory import RunDirectory
from easydistill.engine.runner import Runner
from easydistill.engine.secrets import MASK, Redactor
from easydistill.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TOO_MANY_REJECTED,
    ConfigError,
    ConfigIssue,
    Interrupted,
)
from easydistill.jobs import stages_of
from easydistill.report.comparison.page import build_comparison
from easydistill.report.comparison.runs import FILES
from easydistill.report.metrics import KINDS
from easydistill.report.values import as_text, json_object
from easydistill.sweeping.plan import PlannedVariant, planned
from easydistill.sweeping.table import Outcome, as_json, is_metric, lines
from easydistill.sweeping.variants import Variant

CACHE = "answers_cache"
STATE = "sweep.json"
PAGE = "compare.html"
_STOPPED = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
DONE, FAILED, NOT_RUN = "done", "failed", "not run"
Say = Callable[[str], None]


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    directory: Path
    outcomes: tuple[Outcome, ...]
    """In the order in which they ran."""
    page: Path | None
    """The comparison; None if fewer than two variants have left anything."""
    lines: tuple[str, ...]
    """The table, the best variant first."""

    @property
    def exit_code(self) -> int:
        """1 if a variant failed; else 3 if one has more rejected rows than it allows; else 0."""
        codes = [outcome.exit_code for outcome in self.outcomes]
        if any(outcome.state != DONE for outcome in self.outcomes):
            return EXIT_FAILED
        return EXIT_TOO_MANY_REJECTED if EXIT_TOO_MANY_REJECTED in codes else EXIT_OK


@dataclass(frozen=True)
class _Run:
    """A variant, ready to run."""

    variant: Variant
    loaded: LoadedConfig

    @property
    def directory(self) -> Path:
        return self.loaded.run_directory

    @property
    def label(self) -> str:
        return self.variant.name


class Sweep:
    """The variants of one config.

    Args:
        config: a path, `recipe:NAME`, or the config as a mapping or a typed job.
        variants: from `variants_of`.
        overrides: of all variants, `dotted.path=value`.
        output: the sweep's folder; by default the config's `output_dir`.

    Raises:
        ConfigError: a variant is wrong; every issue of every variant is listed.
    """

    def __init__(
        self,
        config: api.Source,
        variants: Sequence[Variant],
        overrides: Sequence[str] = (),
        output: str | Path | None = None,
    ) -> None:
        source = as_source(config)
        # As the process of a variant is told it.
        self._config = json.loads(json.dumps(source, default=str)) if isinstance(source, Mapping) else str(source)
        self._overrides = tuple(overrides)
        named = self._folder(variants) if output is None else str(output)
        if not named.strip():
            raise ConfigError(
                ConfigIssue("--output", "output_dir", "the text is empty", "name a folder, or leave it out")
            )
        if is_remote(named):
            hint = "name a folder of this machine with --output; submit variants one by one to a store"
            raise ConfigError(ConfigIssue("--output", "output_dir", f"{named} is in an object store", hint))
        self.directory = Path(named)
        self.runs = self._checked(variants)

    def _folder(self, variants: Sequence[Variant]) -> str:
        """The config's own `output_dir`."""
        for variant in variants:
            with contextlib.suppress(ConfigError):
                loaded = self._load(variant, ())
                return loaded.job.remote or str(loaded.run_directory)
        # None can be read; what is wrong with each is told next.
        return "runs"

    @property
    def cache(self) -> Path:
        """The folder of answers that all variants use."""
        named = self.runs[0].loaded.job.answers_cache
        assert named is not None
        return Path(named).expanduser()

    def _load(self, variant: Variant, own: Sequence[str]) -> LoadedConfig:
        return api.load(self._config, [*self._overrides, *variant.overrides, *own])

    def _checked(self, variants: Sequence[Variant]) -> list[_Run]:
        """All variants as they are to run."""
        found: dict[ConfigIssue, list[str]] = {}
        runs = []
        for variant in variants:
            try:
                runs.append(self._check(variant))
            except ConfigError as error:
                for issue in error.issues:
                    found.setdefault(issue, []).append(variant.name)
        if found:
            raise ConfigError([_of_variants(issue, names, len(variants)) for issue, names in found.items()])
        return runs

    def _check(self, variant: Variant) -> _Run:
        own = [f"output_dir={json.dumps(str(self.directory / variant.name))}"]
        loaded = self._load(variant, own)
        if loaded.job.answers_cache is None:
            own.append(f"answers_cache={json.dumps(str(self.directory / CACHE))}")
            loaded = self._load(variant, own)
        api.check_launch(loaded.job)
        api.check_row_paths(loaded.job)
        Runner.silent(RunDirectory(loaded.run_directory)).preflight(stages_of(loaded.job))
        return _Run(variant, loaded)

    # --- before it runs -------------------------------------------------------------------------------------------

    def plan(self) -> list[PlannedVariant]:
        """What each variant would take, and what it takes from others."""
        found = [(run.label, run.loaded.job, api.plan(self._config, run.loaded.overrides)) for run in self.runs]
        return planned(found)

    # --- running --------------------------------------------------------------------------------------------------

    def run(
        self, *, by: str | None = None, quiet: bool = False, replace: bool = False, say: Say = print
    ) -> SweepResult:
        """Run what is not finished, then compare.

        Args:
            by: the metric that orders the table.
            replace: as in `api.run`.

        Raises:
            ConfigError: there is no such metric.
            Interrupted: stopped by the user; the same call goes on.
            RunDirectoryBusy: another sweep is at work in the folder.
        """
        check_metric(by)
        with RunDirectory(self.directory).locked():
            self._take_earlier(say)
            outcomes = [Outcome.read(run.label, run.directory, NOT_RUN, None) for run in self.runs]
            for at, run in enumerate(self.runs):
                say(f"=== [{at + 1}/{len(self.runs)}] {run.label}")
                outcomes[at] = self._one(run, quiet=quiet, replace=replace, say=say)
                self._write(outcomes)
            return self._result(outcomes, by)

    def _take_earlier(self, say: Say) -> None:
        """What a run in the sweep's own folder has paid for is not paid for again."""
        if not (self.directory / "stages").is_dir():
            return
        found = api.answers_import(self.cache, self.directory)
        if found.new:
            say(f"{found.new:,} answers of the run in {self.directory} are used")

    def _one(self, run: _Run, *, quiet: bool, replace: bool, say: Say) -> Outcome:
        if is_finished(run.loaded):
            say("finished before")
            code = int(json_object(run.directory / "summary.json").get("exit_code") or 0)
            return Outcome.read(run.label, run.directory, DONE, code)
        asked = {
            "config": self._config,
            "overrides": list(run.loaded.overrides),
            "quiet": quiet,
            "replace": replace,
        }
        code = run_child(asked)
        if code in _STOPPED:
            raise Interrupted("stopped; finished variants and answers are kept. The same command goes on from there")
        if code in (EXIT_OK, EXIT_TOO_MANY_REJECTED):
            return Outcome.read(run.label, run.directory, DONE, code)
        error = _error_of(run.directory, code)
        say(f"{run.label} has failed; the others go on")
        return Outcome.read(run.label, run.directory, FAILED, code, error)

    def _write(self, outcomes: Sequence[Outcome]) -> None:
        redactor = Redactor()
        redactor.register_config(self.runs[0].loaded.job)
        state = {
            "config": self.runs[0].loaded.given,
            "overrides": [_hidden(override) for override in self._overrides],
            "answers_cache": str(self.cache),
            "variants": [
                {**as_json(outcome), "values": dict(run.variant.values)}
                for run, outcome in zip(self.runs, outcomes, strict=True)
            ],
        }
        write_json(self.directory / STATE, redactor.value(state))

    def _result(self, outcomes: Sequence[Outcome], by: str | None) -> SweepResult:
        there = [
            outcome.directory for outcome in outcomes if any((outcome.directory / name).exists() for name in FILES)
        ]
        page = build_comparison(there, self.directory / PAGE) if len(there) > 1 else None
        told = lines(outcomes, by)
        told += [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
        if page is not None:
            told.append(f"comparison: {page}")
        return SweepResult(self.directory, tuple(outcomes), page, tuple(told))


def sweep(
    config: api.Source,
    variants: Sequence[Variant],
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    by: str | None = None,
    quiet: bool = False,
    replace: bool = False,
    say: Say = print,
) -> SweepResult:
    """Run variants of a config on shared labels and signals, and compare them; see `Sweep`.

    Raises what `Sweep` and `Sweep.run` raise.
    """
    return Sweep(config, variants, overrides, output).run(by=by, quiet=quiet, replace=replace, say=say)


def check_metric(by: str | None) -> None:
    """
    Raises:
        ConfigError: no evaluation measures this.
    """
    if by is not None and not is_metric(by):
        guess = closest(by, list(KINDS))
        hint = f"did you mean {guess}?" if guess else f"use one of {', '.join(KINDS)}"
        raise ConfigError(ConfigIssue("--by", "", f"there is no metric {json.dumps(by)}", hint))


def is_finished(loaded: LoadedConfig) -> bool:
    """Whether a run has nothing left to do."""
    run = RunDirectory(loaded.run_directory)
    summary = run.read_summary()
    if summary is None or summary["status"] != "done" or not run.report.is_file():
        return False
    return all(Runner.silent(run).completed(stages_of(loaded.job)))


def run_child(asked: Mapping[str, Any]) -> int:
    """Run one variant in a process of its own; returns its exit code, or minus the signal that killed it."""
    command = [sys.executable, "-m", "easydistill.sweeping.child"]
    # What it prints is shown as it comes, also where this process's output is no terminal.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process, _passing_on(process):
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        # The input stays open: its end tells the child that the sweep is gone.
        return process.wait()


@contextlib.contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A terminal sends Ctrl-C to both, and the child finishes what it has in hand; what is sent to this process alone
    is passed on."""
    try:
        kept = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM)),
        }
    except ValueError:
        # Not the main thread, which alone may do this.
        yield
        return
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _of_variants(issue: ConfigIssue, names: Sequence[str], total: int) -> ConfigIssue:
    if len(names) == total:
        return issue
    return replace(issue, problem=f"{issue.problem} (in {', '.join(names)})")


def _error_of(directory: Path, code: int) -> str:
    error = as_text(json_object(directory / "summary.json").get("error"))
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return error or f"exit code {code}; its error is above"


def _hidden(override: str) -> str:
    name = override.partition("=")[0]
    return f"{name}={MASK}" if name.strip().endswith("api_key") else override
