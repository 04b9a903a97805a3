"""What is asked again, given up and recorded when workers die; workers that live in this test's head."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from easydistill.config.inference import (
    AutoInferenceConfig,
    RayInferenceConfig,
    TransformersInferenceConfig,
    VllmInferenceConfig,
    WorkersOptions,
)
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome, request_key
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import StageContext
from easydistill.errors import ConfigError, ModelError, TeacherError
from easydistill.teachers import plan_teacher
from easydistill.teachers.pool import local
from easydistill.teachers.pool.board import Board, Unit
from easydistill.teachers.pool.messages import Answered, Ask, Divide, Divided, Failed, Gone, Ready
from easydistill.teachers.pool.teacher import MOST_DEATHS_IN_A_ROW, WORKER_DIED, PooledTeacher

KILLED = Gone("was killed by SIGKILL", "last words")
RAISED = Gone("met RuntimeError: broken", "Traceback …", raised=True)


def requests(count: int) -> list[GenerationRequest]:
    return [GenerationRequest(f"k{number}", ({"role": "user", "content": str(number)},)) for number in range(count)]


class Imagined:
    """A crew that answers from its head, one message a call of `hear`.

    Args:
        end: what becomes of a worker that is asked this, or None if it answers.
    """

    def __init__(self, size: int, end: Callable[[int, tuple[str, ...]], Any] = lambda worker, keys: None) -> None:
        self.size = size
        self._end = end
        self.alive: set[int] = set()
        self.starts: list[int] = []
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.rested: Collection[int] = ()
        self._told: list[tuple[int, Any]] = []

    def start(self, worker: int) -> None:
        assert worker not in self.alive
        self.alive.add(worker)
        self.starts.append(worker)
        self._told.append((worker, Ready()))

    def send(self, worker: int, message: Any) -> None:
        assert worker in self.alive
        if isinstance(message, Divide):
            keys = [request.key for request in message.requests]
            batches = [keys[at : at + 2] for at in range(0, len(keys), 2)]
            self._told.append((worker, Divided(message.number, batches, [])))
            return
        assert isinstance(message, Ask)
        keys_asked = tuple(request.key for request in message.requests)
        self.asked.append((worker, keys_asked))
        outcomes: list[Outcome] = [Completion(key, f"{key}!") for key in keys_asked]
        end = self._end(worker, keys_asked)
        self._told.append((worker, end or Answered(message.number, outcomes)))

    def hear(self, seconds: float) -> list[tuple[int, Any]]:
        assert self._told, "the teacher waits for nothing"
        worker, message = self._told.pop(0)
        if isinstance(message, Gone):
            self.alive.discard(worker)
            self._told = [item for item in self._told if item[0] != worker]
        return [(worker, message)]

    def end(self, resting: Collection[int]) -> None:
        self.rested = set(resting)


class Asking:
    """A pooled teacher at work."""

    def __init__(self, crew: Imagined, tmp_path: Path, *, streams: bool = False, most: int = 1) -> None:
        context = StageContext(tmp_path, tmp_path, {}, "", StopSignal(), Reporter(None, quiet=True), Redactor())
        self.teacher = PooledTeacher(crew, dict, context, streams=streams, most=most)
        self.lines: list[list[Outcome]] = []
        self.stop = context.stop

    def ask(self, asked: list[GenerationRequest], done: Collection[str] = ()) -> list[Outcome]:
        self.teacher.generate(asked, lambda key: key in done, lambda found: self.lines.append(list(found)), self.stop)
        return [outcome for line in self.lines for outcome in line]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("streams", [False, True])
def test_every_request_is_answered_once(size: int, streams: bool, tmp_path: Path) -> None:
    crew = Imagined(size)
    asking = Asking(crew, tmp_path, streams=streams, most=3)
    found = asking.ask(requests(9))
    assert sorted(outcome.key for outcome in found) == sorted(f"k{number}" for number in range(9))
    assert {len(line) for line in asking.lines} == ({1} if streams else {1, 2})
    asking.teacher.close()
    assert set(crew.rested) == crew.alive


def test_batches_depend_on_all_requests_and_whole_batches_are_asked(tmp_path: Path) -> None:
    crew = Imagined(2)
    Asking(crew, tmp_path).ask(requests(6), done={"k0", "k1", "k2"})
    assert {keys for _, keys in crew.asked} == {("k2", "k3"), ("k4", "k5")}


def test_no_more_workers_start_than_there_are_requests(tmp_path: Path) -> None:
    crew = Imagined(8)
    Asking(crew, tmp_path).ask(requests(3), done={"k0"})
    assert len(crew.starts) == 2


def test_few_requests_are_shared_evenly(tmp_path: Path) -> None:
    crew = Imagined(3)
    Asking(crew, tmp_path, streams=True, most=100).ask(requests(9))
    assert [sum(worker == number for worker, _ in crew.asked) for number in range(3)] == [3, 3, 3]


@pytest.mark.parametrize("streams", [False, True])
def test_what_a_dead_worker_had_is_asked_again(streams: bool, tmp_path: Path) -> None:
    deaths = iter([True, False, False, True])
    crew = Imagined(2, lambda worker, keys: KILLED if next(deaths, False) else None)
    found = Asking(crew, tmp_path, streams=streams, most=2).ask(requests(20))
    assert sorted(outcome.key for outcome in found) == sorted(f"k{number}" for number in range(20))
    assert all(isinstance(outcome, Completion) for outcome in found)
    assert len(crew.starts) == 4


def test_a_batch_that_kills_two_workers_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    crew = Imagined(2, lambda worker, keys: KILLED if "k5" in keys else None)
    found = Asking(crew, tmp_path).ask(requests(20))
    failures = [outcome for outcome in found if isinstance(outcome, Failure)]
    assert {outcome.key for outcome in failures} == {"k4", "k5"}
    assert {(outcome.reason, outcome.passing) for outcome in failures} == {(WORKER_DIED, True)}
    assert len(found) == 20


def test_only_the_request_that_kills_is_given_up_among_many_at_once(tmp_path: Path) -> None:
    crew = Imagined(2, lambda worker, keys: KILLED if "k5" in keys else None)
    found = Asking(crew, tmp_path, streams=True, most=4).ask(requests(20))
    assert [outcome.key for outcome in found if isinstance(outcome, Failure)] == ["k5"]
    assert len({outcome.key for outcome in found}) == len(found) == 20


def test_workers_that_only_die_end_the_run(tmp_path: Path) -> None:
    crew = Imagined(2, lambda worker, keys: KILLED)
    with pytest.raises(TeacherError, match=r"no worker is left.*(?s:.*)last words") as caught:
        Asking(crew, tmp_path).ask(requests(40))
    assert caught.value.exit_code == 1
    assert len(crew.starts) == 2 * MOST_DEATHS_IN_A_ROW


def test_an_exception_in_two_workers_over_one_batch_ends_the_run(tmp_path: Path) -> None:
    crew = Imagined(2, lambda worker, keys: RAISED if "k5" in keys else None)
    asking = Asking(crew, tmp_path)
    with pytest.raises(TeacherError, match="met RuntimeError: broken"):
        asking.ask(requests(8))
    assert {outcome.key for line in asking.lines for outcome in line} == {"k0", "k1", "k2", "k3", "k6", "k7"}


def test_an_error_that_no_worker_is_spared_is_raised_as_it_is(tmp_path: Path) -> None:
    crew = Imagined(2, lambda worker, keys: Failed(ModelError("no such weights")))
    with pytest.raises(ModelError, match="no such weights"):
        Asking(crew, tmp_path).ask(requests(8))


def test_what_is_in_hand_is_finished_when_the_user_stops(tmp_path: Path) -> None:
    crew = Imagined(2)
    asking = Asking(crew, tmp_path)
    asking.lines = _Stopping(asking.stop)
    found = asking.ask(requests(20))
    assert len(found) == len({key for _, keys in crew.asked for key in keys}) < 20


class _Stopping(list[list[Outcome]]):
    """A journal at whose first line the user stops the run."""

    def __init__(self, stop: StopSignal) -> None:
        super().__init__()
        self._stop = stop

    def append(self, line: list[Outcome]) -> None:
        super().append(line)
        self._stop.request()


def test_suspects_are_asked_alone() -> None:
    board = Board([Unit(number, ()) for number in range(3)], 3)
    for worker in (0, 1):
        taken = [board.take(worker) for _ in range(3)]
        assert None not in taken
        assert board.died(worker) == []
    assert board.take(2) is not None
    assert board.take(2) is None and board.take(3) is not None


def test_the_number_of_workers_and_where_they_are_change_no_key(tiny_model: Path) -> None:
    sections = [
        TransformersInferenceConfig(backend="transformers"),
        TransformersInferenceConfig(backend="transformers", workers=3),
        TransformersInferenceConfig(backend="transformers", workers="auto"),
        RayInferenceConfig(
            backend="ray", engine="transformers", num_actors=2, num_cpus=3, num_gpus=0.5, address="auto"
        ),
    ]
    messages: Any = ({"role": "user", "content": "Hi"},)
    keys = {
        request_key(plan_teacher(section, str(tiny_model)).identity(), section.sampling(), messages)
        for section in sections
    }
    assert len(keys) == 1


def test_ray_shares_out_parts_of_a_gpu_and_whole_ones() -> None:
    assert [RayInferenceConfig(backend="ray", num_gpus=value).num_gpus for value in (0, 0.5, 1, 2)] == [0, 0.5, 1, 2]


def with_gpus(monkeypatch: pytest.MonkeyPatch, gpus: list[str]) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: gpus)


@pytest.mark.parametrize(
    "config, expected",
    [
        (VllmInferenceConfig(backend="vllm", workers="auto"), [("0",), ("2",), ("5",), ("7",)]),
        (VllmInferenceConfig(backend="vllm", workers=2), [("0", "2"), ("5", "7")]),
        (VllmInferenceConfig(backend="vllm", workers=3), [("0",), ("2",), ("5",)]),
        (VllmInferenceConfig(backend="vllm", workers="auto", tensor_parallel_size=2), [("0", "2"), ("5", "7")]),
        (VllmInferenceConfig(backend="vllm", workers=1, tensor_parallel_size=2), [("0", "2")]),
        (TransformersInferenceConfig(backend="transformers", workers="auto"), [("0",), ("2",), ("5",), ("7",)]),
        (TransformersInferenceConfig(backend="transformers", workers=2), [("0",), ("2",)]),
    ],
)
def test_every_worker_has_gpus_of_its_own(
    config: WorkersOptions, expected: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, ["0", "2", "5", "7"])
    assert local.devices_of(config.backend, config) == expected  # type: ignore[arg-type]
    assert local.worker_issues(config.backend, config) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config, said",
    [
        (TransformersInferenceConfig(backend="transformers", workers=5), "5 of them need as many GPUs"),
        (VllmInferenceConfig(backend="vllm", workers=3, tensor_parallel_size=2), "need 6 GPUs (2 each)"),
        (VllmInferenceConfig(backend="vllm", workers="auto", tensor_parallel_size=8), "need 8 GPUs"),
    ],
)
def test_too_few_gpus_are_told(config: WorkersOptions, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, ["0", "1", "2", "3"])
    (issue,) = local.worker_issues(config.backend, config)  # type: ignore[arg-type]
    assert said in issue.problem and "this machine has 4" in issue.problem and "auto" in issue.hint


def test_without_gpus_there_are_as_many_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, [])
    assert local.devices_of("transformers", AutoInferenceConfig(workers=3)) == [(), (), ()]
    assert local.devices_of("transformers", AutoInferenceConfig(workers="auto")) == [()]
    assert local.worker_notes("transformers", AutoInferenceConfig(workers=2)) == [
        "2 workers of the teacher, without GPUs"
    ]
    assert local.worker_notes("transformers", AutoInferenceConfig()) == []


def job(**inference: Any) -> dict[str, Any]:
    return {
        "job_type": "black_box_kd_local",
        "dataset": {"instruction_path": "x.json"},
        "inference": inference,
        "models": {"teacher": "t", "student": "s"},
    }


def test_keys_where_they_have_no_effect_are_refused() -> None:
    from easydistill.api import load

    served = {**job(base_url="http://localhost:1/v1", workers=2), "job_type": "black_box_kd_api"}
    del served["models"]["teacher"]
    for config, said in (
        (served, "there is no key 'workers' here"),
        (job(backend="ray", workers=2), "`workers` is a key of backend"),
        (job(backend="vllm", num_actors=2), '`num_actors` is a key of backend "ray"'),
        (job(backend="ray", address="ray://head:10001"), "is the address of a Ray client"),
        (job(backend="ray", replicas=2), "set num_actors instead of replicas"),
        (job(backend="ray", num_gpus=1.5), "1.5 is a fraction above 1"),
        (job(workers=0), "at least 1"),
        ({**job(backend="ray"), "job_type": "white_box_kd_local"}, "gives no distributions over tokens"),
        ({**job(workers=2), "job_type": "on_policy_kd"}, "in the process that trains"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(config)
        assert said in str(caught.value)
