"""Workers in actors of a Ray cluster: one that runs already, or one of this machine that is ended with the run.

An actor serves in a thread of its own. The run's process has one call under way to each, which returns what the worker
tells next. Ray restarts nothing and repeats nothing: that is decided in `teacher.py`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from easydistill.config.inference import RayInferenceConfig
from easydistill.errors import MissingExtra, TeacherError
from easydistill.models.spread import visible_gpus
from easydistill.teachers.pool.messages import STOP, Gone, TeacherSpec
from easydistill.teachers.pool.processes import GRACE, log_name, tail_of
from easydistill.teachers.pool.worker import Inbox, serve

PATIENCE = 30.0
"""Seconds without an actor after which the user is told what the cluster lacks."""
CONNECT = 10.0
"""Seconds in which a cluster's head has to accept a connection."""
ALIVE = 1.0
"""Seconds between two looks of an actor at its node's Ray."""
_PASSED_ON = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that actors on other nodes have too."""
_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass
class _Connection:
    """This process's connection, if a crew has made it. Ray allows one at a time."""

    users: int = 0
    """Crews that use it; the last one ends it."""
    address: str | None = None
    """None for a cluster of our own."""


_connection = _Connection()

_STARTED = "started"
"""What an actor tells first: that the cluster had room for it."""


class TeacherActor:
    """What an actor is: a worker, its inbox, and what it tells.

    Args:
        log: file for what it prints, where its folder is there on the actor's node; else Ray keeps it.
        is_own: whether the cluster is the run's own, and to end with it.
    """

    def __init__(self, spec: TeacherSpec, log: Path, is_own: bool) -> None:
        if log.parent.is_dir():
            printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            os.close(printed)
        watch = partial(_perish_without, os.getppid(), with_all=is_own)
        threading.Thread(target=watch, daemon=True).start()
        self._inbox: Inbox = SimpleQueue()
        self._told: SimpleQueue[Any] = SimpleQueue()
        self._told.put(_STARTED)
        self._thread = threading.Thread(target=serve, args=(spec, self._inbox, self._told.put), daemon=True)
        self._thread.start()

    def put(self, message: Any) -> None:
        """Give the worker a message."""
        self._inbox.put(message)

    def hear(self) -> list[Any]:
        """What the worker has told since the last call; waits for something."""
        found = [self._told.get()]
        while True:
            try:
                found.append(self._told.get_nowait())
            except Empty:
                return found

    def close(self) -> None:
        """Let the worker free what it holds."""
        self._inbox.put(STOP)
        self._thread.join()


def _perish_without(parent: int, *, with_all: bool) -> None:
    """End this process once its node's Ray is gone; with `with_all` also what Ray has started beside it.

    Ray sees to that too, but takes a minute: its agents try to tell the dead cluster first.
    """
    beside: set[int] = set()
    while os.getppid() == parent:
        beside = _children_of(parent) if with_all else beside
        time.sleep(ALIVE)
    for process in beside - {os.getpid()}:
        # Not one that has got the number since.
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
                os.kill(process, signal.SIGKILL)
    os._exit(1)


def _children_of(process: int) -> set[int]:
    """The processes that a process has started, on Linux."""
    found: set[int] = set()
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, children.read_text().split()))
    return found


class RayCrew:
    """Actors.

    Args:
        logs: folder for what actors print.
        say: tells the user something.
    """

    def __init__(self, spec: TeacherSpec, config: RayInferenceConfig, logs: Path, say: Callable[[str], None]) -> None:
        # On other nodes a path is not relative to this directory.
        self._spec = spec if config.address is None else _absolute(spec)
        self._config = config
        self._logs = logs.absolute()
        self._say = say
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}
        """The call under way to each actor → its number."""
        self._shares = False
        """Whether its connection is ours."""
        self._quiet_since: float | None = None

    @cached_property
    def _ray(self) -> Any:
        """Ray, connected to the cluster."""
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray", "inference.backend=ray") from None
        wanted = self._config.address
        if not ray.is_initialized():
            self._connect(ray)
            _connection.users, _connection.address = 1, wanted
            self._shares = True
        elif _connection.users:
            if _connection.address != wanted:
                raise TeacherError(
                    f"this run is connected to {_named(_connection.address)} already, and not to {_named(wanted)}\n"
                    "    → use one inference.address for all models of the run"
                )
            _connection.users += 1
            self._shares = True
        return ray

    def _connect(self, ray: Any) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        gpus = len(visible_gpus())
        config = self._config
        with _undisturbed():
            if config.address is not None:
                try:
                    _knock(config.address)
                    ray.init(address=config.address, **quiet)
                except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                    raise TeacherError(
                        f"there is no Ray cluster at {config.address}: {_first_line(error)}\n"
                        "    → start one (`ray start`), or remove inference.address to have one of this machine"
                    ) from error
                return
            with _own_token():
                ray.init(address="local", num_gpus=gpus, include_dashboard=False, **quiet)

    def _each(self, gpus: float) -> float:
        """GPUs of an actor in a cluster that has so many."""
        if self._config.num_gpus is not None:
            return self._config.num_gpus
        shared = self._config.tensor_parallel_size if self._spec.engine == "vllm" else None
        return (shared or 1) if gpus else 0

    def _count(self, gpus: float) -> int:
        if self._config.num_actors != "auto":
            return self._config.num_actors
        each = self._each(gpus)
        return max(1, int(gpus // each)) if each else 1

    @property
    def _is_own(self) -> bool:
        return self._shares and self._config.address is None

    @cached_property
    def _gpus(self) -> float:
        return float(self._ray.cluster_resources().get("GPU", 0))

    @cached_property
    def size(self) -> int:
        """Most actors."""
        return self._count(self._gpus)

    def start(self, worker: int) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        variables["OMP_NUM_THREADS"] = str(self._config.num_cpus)
        options: dict[str, Any] = {
            # A cluster of our own has room for as many as are asked for.
            "num_cpus": 0 if self._is_own else self._config.num_cpus,
            "num_gpus": self._each(self._gpus),
            "max_restarts": 0,
            "max_task_retries": 0,
            # One call waits for what the worker tells, while others bring messages.
            "max_concurrency": 2,
            "runtime_env": {"env_vars": variables},
        }
        actor = self._ray.remote(**options)(TeacherActor).remote(
            self._spec, self._logs / log_name(worker), self._is_own
        )
        self._actors[worker] = actor
        self._calls[actor.hear.remote()] = worker
        self._quiet_since = self._quiet_since or time.monotonic()

    def send(self, worker: int, message: Any) -> None:
        if worker in self._actors:
            self._actors[worker].put.remote(message)

    def hear(self, seconds: float) -> list[tuple[int, Any]]:
        ray = self._ray
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        heard: list[tuple[int, Any]] = []
        for call in ready:
            worker = self._calls.pop(call)
            try:
                told = ray.get(call)
            except ray.exceptions.RayError as error:
                told = [Gone(_how(error), tail_of(self._logs / log_name(worker)))]
            heard += [(worker, message) for message in told if message != _STARTED]
            if isinstance(told[-1], Gone):
                ray.kill(self._actors.pop(worker))
            else:
                self._calls[self._actors[worker].hear.remote()] = worker
        self._look_for_signs(bool(ready))
        return heard

    def _look_for_signs(self, heard: bool) -> None:
        """Tell the user once if no actor starts: the cluster may have no room."""
        if heard:
            self._quiet_since = float("inf")
        elif self._quiet_since is not None and time.monotonic() - self._quiet_since > PATIENCE:
            self._quiet_since = float("inf")
            free = self._ray.available_resources()
            self._say(
                f"  no actor has started yet: each needs {self._config.num_cpus} CPUs and {self._each(self._gpus):g} "
                f"GPUs, and the cluster has {free.get('CPU', 0):g} and {free.get('GPU', 0):g} free"
            )

    def end(self, resting: Collection[int]) -> None:
        if "_ray" not in vars(self):
            return
        ray = self._ray
        closing = [self._actors[worker].close.remote() for worker in resting if worker in self._actors]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=GRACE)
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._calls.clear()
        if self._shares:
            _connection.users -= 1
            if not _connection.users:
                ray.shutdown()
        del self._ray


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Connect without usage statistics, warnings, or a handler of Ray's own for SIGTERM."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A token of this process for a cluster that it starts, unless the user has chosen how Ray authenticates.

    Ray would write one that every user can read to the home directory.
    """
    if any(name in os.environ for name in _AUTH):
        yield
        return
    # Not RAY_AUTH_MODE: Ray has read it when it was imported, and sets it itself.
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(_token_folder() / "token")
    try:
        yield
    finally:
        for name in _AUTH:
            os.environ.pop(name, None)


@functools.cache
def _token_folder() -> Path:
    """A folder with a token. One for the whole process: Ray reads its token once."""
    folder = tempfile.TemporaryDirectory(prefix="easydistill-ray-")
    _kept.append(folder)
    path = Path(folder.name)
    (path / "token").write_text(secrets.token_hex(32))
    (path / "token").chmod(0o600)
    return path


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _knock(address: str) -> None:
    """Raise an OSError if nobody listens at `host:port`: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


def _absolute(spec: TeacherSpec) -> TeacherSpec:
    """The spec with absolute paths."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path is not None and Path(path).exists() else path

    inference = spec.inference.model_copy(update={"template": absolute(spec.inference.template)})
    model = absolute(spec.model)
    assert model is not None
    return replace(spec, model=model, template=absolute(spec.template), inference=inference)


def _named(address: str | None) -> str:
    return "a Ray cluster of this machine" if address is None else f"the Ray cluster at {address}"


def _how(error: Exception) -> str:
    """What became of an actor, by Ray's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "because" in line or "Error:" in line), lines[0] if lines else repr(error))
    return f"died: {told}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
