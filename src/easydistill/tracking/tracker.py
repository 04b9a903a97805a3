"""The side of the command that leads a run: starts a process for each sink, says how the run ends, warns once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from easydistill.config.job import JobConfig
from easydistill.config.sink import SINKS, SinkConfig
from easydistill.data.files import read_json, write_json
from easydistill.data.records import content_hash
from easydistill.engine.run_directory import LOGGER, RunDirectory
from easydistill.engine.secrets import Redactor
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.tracking.child import Spec
from easydistill.tracking.follow import sizes

FOLDER = "tracking"
PATIENCE = 60.0
"""Seconds without a sign of life, at the end of a run, after which a sink is given up. MLflow makes its database in 20
on a busy machine."""
SHORT_PATIENCE = 5.0
"""The same for a sink that has not even opened its record by then, in a run of at least `PATIENCE`."""


def chosen_sinks(job: JobConfig) -> dict[str, SinkConfig]:
    """The sinks that a config names."""
    found: dict[str, SinkConfig] = {} if job.track is None else job.track.chosen()
    return found


def check_sinks(job: JobConfig) -> None:
    """Refuse sinks whose libraries are not installed.

    Raises:
        ConfigError: with every such sink.
    """
    issues = []
    for name in chosen_sinks(job):
        missing = [module for module in SINKS.module(name).NEEDS if importlib.util.find_spec(module) is None]
        if missing:
            problem = f"{', '.join(missing)} is not installed"
            issues.append(ConfigIssue("config", f"track.{name}", problem, f"pip install {' '.join(missing)}"))
    if issues:
        raise ConfigError(issues)


class Tracker:
    """The sinks of one start of a run. Whatever happens to a sink, no method raises or waits for it, but for `close`,
    which waits a limited time.

    Args:
        settings: the resolved config, without secrets.
        say: shows a line to the user.
    """

    def __init__(
        self,
        run: RunDirectory,
        job: JobConfig,
        name: str,
        settings: Mapping[str, Any],
        redactor: Redactor,
        say: Callable[[str], None],
    ) -> None:
        self._run, self._job, self._name = run, job, name
        self._settings, self._redactor, self._say = settings, redactor, say
        self._sinks: list[_SinkProcess] = []

    def start(self) -> None:
        """Start what is not complete."""
        chosen = chosen_sinks(self._job)
        if not chosen:
            return
        folder = self._run.path / FOLDER
        old = sizes(self._run.path)
        context = {
            "id": _run_id(folder / "run.json", self._name),
            "name": self._name,
            "job_type": self._job.job_type,
            "settings": dict(flat({key: value for key, value in self._settings.items() if key != "track"})),
        }
        for name, config in chosen.items():
            place = folder / name
            spec = Spec(
                sink=name,
                settings=plain(config),
                context={**context, "directory": str(place)},
                run=str(self._run.path),
                state=str(folder / f"{name}.json"),
                old=old,
            )
            self._sinks.append(_SinkProcess(spec, self._failed))

    def is_complete(self) -> bool:
        """Whether every sink has all of a finished run already."""
        return all(
            _read(self._run.path / FOLDER / f"{name}.complete.json").get("of") == self._whole(config)
            for name, config in chosen_sinks(self._job).items()
        )

    def close(self, status: str) -> None:
        """Tell every sink how the run has ended, and wait until they have everything, or show no sign of life."""
        for sink in self._sinks:
            sink.end(status)
        for sink in self._sinks:
            name = sink.spec.sink
            done = self._run.path / FOLDER / f"{name}.complete.json"
            done.unlink(missing_ok=True)
            if sink.wait() and status == "done":
                write_json(done, {"of": self._whole(chosen_sinks(self._job)[name])})
        self._sinks = []

    def _whole(self, config: SinkConfig) -> str:
        """What a record is complete of: the run's files and the sink's settings."""
        settings = config.model_dump(mode="json", exclude={"api_key"})
        return content_hash({"settings": settings, "files": sizes(self._run.path), "name": self._name})

    def _failed(self, sink: str, problem: str, where: str) -> None:
        problem = self._redactor.text(problem)
        LOGGER.warning("tracking by %s has stopped: %s\n%s", sink, problem, self._redactor.text(where))
        shown = problem if len(problem) < 500 else f"{problem[:500]}…"
        self._say(f"warning: {sink} tracks this run no longer: {shown}\n    → the run goes on; see docs/tracking.md")


class _SinkProcess:
    """A sink's process, and what it tells. It is followed by another one if the record has to be written anew."""

    def __init__(self, spec: Spec, failed: Callable[[str, str, str], None]) -> None:
        self.spec, self._failed = spec, failed
        self._lock = threading.Lock()
        self._status = ""
        self._process: subprocess.Popen[str] | None = None
        self._started = self._heard = time.monotonic()
        self._opened = self._done = self._again = self._warned = self._over = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        if self._start():
            self._listener.start()

    def _start(self) -> bool:
        """Start a process; False if that is impossible, or it is too late for it."""
        with self._lock:
            if self._over:
                return False
            try:
                # A session of its own: Ctrl-C is for the command alone to hear.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "easydistill.tracking.child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            except OSError as error:
                self._fail(f"its process cannot be started: {error}")
                return False
            self._tell(json.dumps(asdict(self.spec)))
            if self._status:
                self._tell(self._status)
            return True

    def _listen(self) -> None:
        while True:
            process = self._process
            assert process is not None and process.stdout is not None
            for line in process.stdout:
                self._heard = time.monotonic()
                with contextlib.suppress(ValueError):
                    self._hear(json.loads(line))
            _reap(process)
            if not self._again:
                break
            # What the run's files hold now, stands.
            self._again, self.spec = False, replace(self.spec, old={})
            if not self._start():
                break
        if not self._done:
            self._fail("its process has ended")

    def _hear(self, told: dict[str, Any]) -> None:
        self._opened = True
        self._done |= "done" in told
        self._again |= "again" in told
        if "failed" in told:
            self._fail(told["failed"], told.get("traceback", ""))

    def _fail(self, problem: str, where: str = "") -> None:
        if not self._warned:
            self._warned = True
            self._failed(self.spec.sink, problem, where)

    def _tell(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        # A process that is gone has said so, or its end is heard.
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def end(self, status: str) -> None:
        """Tell how the run has ended."""
        with self._lock:
            self._status = status
            self._heard = time.monotonic()
            if self._process is not None:
                self._tell(status)

    def wait(self) -> bool:
        """Wait for the process's end, or until it has been silent for too long; whether the sink has everything."""
        if self._process is None:
            return False
        late = not self._opened and time.monotonic() - self._started > PATIENCE
        patience = SHORT_PATIENCE if late else PATIENCE
        while self._listener.is_alive() and (left := self._heard + patience - time.monotonic()) > 0:
            self._listener.join(min(left, 1.0))
        with self._lock:
            self._over = True
            if self._listener.is_alive():
                self._fail(f"it has not finished, and given no sign of life for {patience:.0f} s")
            self._process.kill()
        self._listener.join()
        return self._done


def _reap(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError), process:
        pass


def _run_id(file: Path, name: str) -> str:
    """The run's id for all sinks, made up when it is tracked for the first time."""
    known = _read(file).get("id")
    if isinstance(known, str) and known:
        return known
    letters = "".join(letter if letter.isalnum() else "-" for letter in name)[:40].strip("-")
    made = f"{letters or 'run'}-{secrets.token_hex(4)}"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"id": made})
    return made


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def plain(config: SinkConfig) -> dict[str, Any]:
    """A sink's settings as JSON, secrets as they are: for the pipe to its process alone."""
    values = config.model_dump(exclude_unset=True, by_alias=True)
    return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in values.items()}


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, str | int | float | bool]:
    """A config's values by dotted path; lists as JSON, what is not set left out."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            found |= flat(value, key)
        elif isinstance(value, bool | int | float | str):
            found[key] = value
        elif value is not None:
            found[key] = json.dumps(value, ensure_ascii=False)
    return found
