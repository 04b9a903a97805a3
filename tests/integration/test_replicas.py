"""`inference.replicas`: servers that a run starts, watches and ends. tests/support/fake_vllm.py stands for vLLM's."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_launch import assert_all_gone, gone
from tests.support.jobs import ROOT, local_job, run_here, write_config

from easydistill.config.inference import TransformersInferenceConfig, VllmInferenceConfig, for_student
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import ConfigError, TeacherError
from easydistill.jobs import JOBS
from easydistill.teachers.backends import vllm
from easydistill.teachers.replicas import devices, fleet
from easydistill.teachers.replicas import teacher as replicas
from easydistill.teachers.vllm import VllmTeacher

FAKE = (sys.executable, str(ROOT / "tests/support/fake_vllm.py"))
QUESTIONS = [f"question {number}: " + "word " * (number % 7) for number in range(60)]
REQUESTS = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in QUESTIONS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the servers write what they are asked, and read what they are to do wrong."""
    made = tmp_path / "fake"
    made.mkdir()
    monkeypatch.setenv("FAKE_VLLM", str(made))
    monkeypatch.setattr(replicas, "PROGRAM", FAKE)
    return made


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def processes(folder: Path) -> list[int]:
    return [started[name] for started in lines(folder / "started") for name in ("pid", "engine")]


def answered(folder: Path) -> Counter[str]:
    """How often each prompt was answered."""
    return Counter(str(body["prompt"]) for path in folder.glob("asked-*") for body in lines(path))


class Asking:
    """A teacher whose servers answer `REQUESTS`."""

    def __init__(self, model: Path, tmp_path: Path, **values: Any) -> None:
        config = VllmInferenceConfig(
            backend="vllm", **{"temperature": 0, "max_new_tokens": 24, "replicas": 2, "chunk_size": 4, **values}
        )
        self.said: list[str] = []
        self.redactor = Redactor()
        self.stop = StopSignal()
        self.outcomes: list[Outcome] = []
        self.teacher = replicas.ReplicaTeacher(str(model), config, tmp_path, self.said.append, self.redactor)

    def __call__(self, requests: list[GenerationRequest] = REQUESTS) -> list[Outcome]:
        known = {outcome.key for outcome in self.outcomes}
        self.teacher.generate(requests, known.__contains__, self.outcomes.extend, self.stop)
        return self.outcomes


@pytest.fixture
def asking(tiny_model: Path, tmp_path: Path, folder: Path) -> Iterator[Callable[..., Asking]]:
    made: list[Asking] = []

    def make(**values: Any) -> Asking:
        made.append(Asking(tiny_model, tmp_path, **values))
        return made[-1]

    yield make
    for one in made:
        one.teacher.close()
    assert_all_gone(processes(folder), 15)


def until(told: Callable[[], Any], seconds: float = 30) -> Any:
    ends = time.monotonic() + seconds
    while not (found := told()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found


def whole(outcomes: list[Outcome]) -> None:
    """Every request has an answer, of its first attempt."""
    assert Counter(outcome.key for outcome in outcomes) == Counter(QUESTIONS)
    assert all(isinstance(outcome, Completion) and outcome.attempts == 1 and outcome.text for outcome in outcomes)


def test_servers_share_the_rows(
    asking: Callable[..., Asking], folder: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (folder / "latency").write_text("0.02")
    (folder / "slow-0").write_text("0")
    ask = asking(max_model_len=400)
    whole(ask())
    # A second call, as of another phase, asks the same servers; what is done is not asked again.
    assert len(ask([*REQUESTS, GenerationRequest("more", ({"role": "user", "content": "more"},))])) == 61
    started = lines(folder / "started")
    assert len(started) == 2
    assert set(answered(folder).values()) == {1} and len(answered(folder)) == 61
    bodies = [body for path in folder.glob("asked-*") for body in lines(path)]
    assert len(list(folder.glob("asked-*"))) == 2
    assert bodies[0]["temperature"] == 0 and bodies[0]["stop_token_ids"] == [2] and "seed" not in bodies[0]
    options = started[0]["options"]
    assert options["max_model_len"] == 400 and options["generation_config"] == "vllm" and options["max_num_seqs"] == 4
    # Nobody else may use the servers, and the key is nowhere but in their environment.
    key = dict(
        item.split(b"=", 1) for item in Path(f"/proc/{started[0]['pid']}/environ").read_bytes().split(b"\0") if item
    )
    assert b"RANK" not in key
    secret = key[b"VLLM_API_KEY"].decode()
    assert len(secret) > 30
    assert ask.redactor.text(f"Bearer {secret}") == "Bearer [redacted]"
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        assert gone(int(process.parent.name)) or secret.encode() not in process.read_bytes()
    logs = sorted((tmp_path / "servers").iterdir())
    assert [log.name for log in logs] == ["server-0.log", "server-1.log"]
    assert all("loaded" in log.read_text() and secret not in log.read_text() for log in logs)
    assert not any(secret in line for line in ask.said)
    # The answers are those of the engine in this process: same keys.
    plain = VllmTeacher(str(tiny_model), VllmInferenceConfig(backend="vllm"))
    assert ask.teacher.identity() == plain.identity()


def test_prompts_that_do_not_fit_are_not_sent(asking: Callable[..., Asking], folder: Path) -> None:
    long = GenerationRequest("long", ({"role": "user", "content": "word " * 600},))
    (outcome,) = asking(replicas=1)([long])
    assert isinstance(outcome, Failure) and outcome.reason == "prompt_too_long" and not outcome.passing
    assert not answered(folder)


@pytest.mark.parametrize("victim", ["pid", "guard"])
def test_a_killed_server_is_started_again(asking: Callable[..., Asking], folder: Path, victim: str) -> None:
    """What it was asked is asked elsewhere, and counts as no attempt."""
    (folder / "latency").write_text("0.15")
    ask = asking()
    thread = threading.Thread(target=ask)
    thread.start()
    first = until(
        lambda: [one for one in lines(folder / "started") if len(lines(folder / f"asked-{one['port']}")) > 4]
    )[0]
    process = first["pid"] if victim == "pid" else int(Path(f"/proc/{first['pid']}/stat").read_text().split()[3])
    os.kill(process, signal.SIGKILL)
    thread.join(60)
    whole(ask.outcomes)
    until(lambda: len(lines(folder / "started")) == 3)
    assert_all_gone([first["pid"], first["engine"]], 15)
    assert any("it is started again (1 of 3)" in line for line in ask.said), ask.said


def test_a_single_server_that_dies_is_waited_for(asking: Callable[..., Asking], folder: Path) -> None:
    (folder / "latency").write_text("0.05")
    (folder / "slow-1").write_text("1.5")
    ask = asking(replicas=1)
    thread = threading.Thread(target=ask)
    thread.start()
    first = until(
        lambda: [one for one in lines(folder / "started") if len(lines(folder / f"asked-{one['port']}")) > 4]
    )[0]
    os.kill(first["pid"], signal.SIGKILL)
    thread.join(60)
    whole(ask.outcomes)


def test_a_sick_server_is_started_again(
    asking: Callable[..., Asking], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "HEALTH_EVERY", 0.1)
    ask = asking()
    ask(REQUESTS[:4])
    first = lines(folder / "started")[0]
    (folder / f"sick-{first['port']}").touch()
    until(lambda: len(lines(folder / "started")) == 3)
    (folder / f"sick-{first['port']}").unlink()
    whole(ask())
    assert any("HTTP 503" in line for line in ask.said)


def test_the_others_go_on_without_one_that_never_starts(asking: Callable[..., Asking], folder: Path) -> None:
    (folder / "fails-1").touch()
    ask = asking()
    whole(ask())
    until(lambda: any("it is given up, and 1 go on" in line for line in ask.said))


def test_servers_that_never_start_end_the_run(asking: Callable[..., Asking], folder: Path, tmp_path: Path) -> None:
    for number in range(2):
        (folder / f"fails-{number}").touch()
    with pytest.raises(TeacherError) as error:
        asking()()
    told = str(error.value)
    assert "ended with exit code 1 before it was ready" in told
    assert "the KV cache has no room" in told and "inference.max_model_len" in told
    assert str(tmp_path / "servers") in told


def test_a_server_that_takes_too_long(asking: Callable[..., Asking], folder: Path) -> None:
    (folder / "slow-0").write_text("60")
    with pytest.raises(TeacherError, match=r"took longer than 1 s to start(.|\n)*raise inference\.startup_timeout"):
        asking(replicas=1, startup_timeout=1)()


def test_a_server_that_dies_again_and_again_ends_the_run(
    asking: Callable[..., Asking], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "RESTARTS", 1)
    (folder / "latency").write_text("0.2")
    ask = asking(replicas=1)
    found: list[BaseException] = []

    def work() -> None:
        try:
            ask()
        except TeacherError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for number in range(2):
        one = until(lambda number=number: lines(folder / "started")[number : number + 1])[0]
        until(lambda number=number: sum("is ready" in line for line in ask.said) > number)
        os.kill(one["pid"], signal.SIGKILL)
    thread.join(30)
    assert found and "was killed by SIGKILL" in str(found[0]) and "the same command goes on" in str(found[0])
    # What was answered is kept; nothing is a failure.
    assert all(isinstance(outcome, Completion) for outcome in ask.outcomes)


def deadly(ask: Asking, folder: Path, *texts: str) -> list[GenerationRequest]:
    """Requests that kill whichever server gets them."""
    poisons = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in texts]
    probes = [GenerationRequest(f"probe of {poison.key}", poison.messages) for poison in poisons]
    ask(probes)
    ask.outcomes.clear()
    prompts = [body["prompt"] for path in folder.glob("asked-*") for body in lines(path)]
    assert len(prompts) == len(poisons)
    (folder / "deadly").write_text(json.dumps(prompts))
    return poisons


@pytest.mark.parametrize("servers, poisons, says_so", [(2, 1, False), (2, 1, True), (1, 2, True)])
def test_a_request_that_kills_servers_is_rejected_and_the_others_are_answered(
    asking: Callable[..., Asking], folder: Path, servers: int, poisons: int, says_so: bool
) -> None:
    (folder / "latency").write_text("0.15")
    if says_so:
        (folder / "says-so").touch()
    ask = asking(replicas=servers)
    first, *more = deadly(ask, folder, *(f"deadly {number}" for number in range(poisons)))
    ask([*REQUESTS[:5], first, *REQUESTS[5:12], *more, *REQUESTS[12:20]])
    good = [outcome for outcome in ask.outcomes if isinstance(outcome, Completion)]
    failures = [outcome for outcome in ask.outcomes if isinstance(outcome, Failure)]
    assert Counter(outcome.key for outcome in good) == Counter(QUESTIONS[:20])
    assert all(outcome.attempts == 1 for outcome in good)
    assert {failure.key for failure in failures} == {first.key, *(one.key for one in more)}
    assert len(failures) == poisons
    assert all(failure.reason == "worker_died" and failure.passing and failure.attempts == 3 for failure in failures)
    assert sum("over a single request" in line for line in ask.said) == poisons
    # Deaths of a request's making do not count: the run goes on, at all servers.
    ask(REQUESTS[:40])
    assert len(ask.outcomes) == 40 + poisons and not any("given up" in line for line in ask.said)


def test_a_stop_while_they_start(asking: Callable[..., Asking], folder: Path) -> None:
    for number in range(2):
        (folder / f"slow-{number}").write_text("60")
    ask = asking()
    threading.Timer(1.0, ask.stop.request).start()
    before = time.monotonic()
    assert ask() == []
    ask.teacher.close()
    assert time.monotonic() - before < 10


ORPHANS = """
import sys, time
from pathlib import Path
from tests.integration.test_replicas import Asking, FAKE
from easydistill.teachers.replicas import teacher
teacher.PROGRAM = FAKE
ask = Asking(Path(sys.argv[1]), Path(sys.argv[2]))
ask()
print(len(ask.outcomes), flush=True)
time.sleep(100)
"""


def test_no_server_outlives_a_killed_run(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHANS, str(tiny_model), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "60\n"
        parent.kill()
    assert len(processes(folder)) == 4
    assert_all_gone(processes(folder), 15)


def test_a_job_labels_with_replicas(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The labels do not depend on the number of servers, and a finished stage is not run again for another number."""
    job = local_job(tmp_path, tiny_model, tiny_model, QUESTIONS[:12], backend="vllm", replicas=2, temperature=0)
    del job["inference"]["batch_size"]
    job["evaluation"] = {"enabled": False}
    job["training"] = {**job["training"], "max_steps": 1}
    config = write_config(tmp_path, job)
    code, out = run_here(config)
    assert code == 0, out
    assert "starting 2 vLLM servers" in out
    assert_all_gone(processes(folder), 15)
    labels = tmp_path / "run/stages/1-label"
    assert len(json.loads((labels / "labeled.json").read_text())) == 12
    keys = {one["key"].encode() for one in lines(folder / "started")}
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(keys) == 1 and not any(key in path.read_bytes() for key in keys for path in written)
    code, out = run_here(config, "--set", "inference.replicas=1")
    assert code == 0 and "everything is already done" in out
    (labels / "manifest.json").unlink()
    started = len(lines(folder / "started"))
    assert run_here(config, "--set", "inference.replicas=3")[0] == 0
    assert len(lines(folder / "started")) == started, "all answers are in the journal"


# --- what is refused ---------------------------------------------------------------------------------------------


def test_each_server_has_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")
    parts = replicas.device_parts(2, None, on_cpu=False)
    assert [part["CUDA_VISIBLE_DEVICES"] for part in parts] == ["4,5", "6,GPU-7"]
    assert replicas.device_parts(3, 1, on_cpu=False)[2] == {"CUDA_VISIBLE_DEVICES": "6"}
    for count, each in ((5, None), (3, 2)):
        with pytest.raises(ConfigError, match=r"inference\.replicas"):
            replicas.device_parts(count, each, on_cpu=False)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 5}, raising=False)
    assert [part["VLLM_CPU_OMP_THREADS_BIND"] for part in replicas.device_parts(2, None, on_cpu=True)] == ["0,1", "2,3"]
    assert replicas.device_parts(6, 1, on_cpu=True) == [{}] * 6
    with pytest.raises(ConfigError, match="no GPU"):
        replicas.device_parts(1, 2, on_cpu=True)


@pytest.mark.parametrize(
    "replicas_, each, gpus, field",
    [
        (5, None, 4, "replicas"),
        (3, 2, 4, "replicas"),
        (1, 2, 0, "tensor_parallel_size"),
        (2, 2, 4, None),
        (3, 1, 0, None),
    ],
)
def test_too_few_devices_are_told_before_anything_starts(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, replicas_: int, each: int | None, gpus: int, field: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "gpus", lambda: gpus)
    config = VllmInferenceConfig(backend="vllm", replicas=replicas_, tensor_parallel_size=each)
    plans = (
        vllm.plan(config, str(tiny_model), None),
        vllm.plan(VllmInferenceConfig(backend="vllm"), str(tiny_model), None),
    )
    found = [issue.path for issue in plans[0].preflight() if issue not in plans[1].preflight()]
    assert found == ([f"inference.{field}"] if field else [])


def test_every_replica_needs_the_weights(tiny_model: Path) -> None:
    one, three = (
        vllm.plan(VllmInferenceConfig(backend="vllm", replicas=count), str(tiny_model), None).memory_bytes()
        for count in (None, 3)
    )
    assert one is not None and three == 3 * one


def test_replicas_are_no_part_of_an_answer_s_identity() -> None:
    plain = VllmInferenceConfig(backend="vllm")
    several = VllmInferenceConfig(backend="vllm", replicas=4, startup_timeout=60)
    assert plain.identity() == several.identity() and plain.sampling() == several.sampling()
    # The student's own answers are generated in this process.
    assert for_student(several).replicas is None


def test_replicas_do_not_score(tmp_path: Path) -> None:
    job = {
        "job_type": "on_policy_kd",
        "output_dir": str(tmp_path),
        "dataset": {"labeled_path": "rows.json"},
        "inference": {"backend": "vllm", "replicas": 2},
        "models": {"teacher": "a", "student": "b"},
    }
    model: Any = JOBS.module("on_policy_kd").Job
    with pytest.raises(ValueError, match="here the teacher only scores"):
        model.model_validate(job)
    job["dataset"] = {"instruction_path": "prompts.json", "labeled_path": "labels.json"}
    assert model.model_validate(job).inference.replicas == 2


def test_transformers_has_no_replicas() -> None:
    with pytest.raises(ValueError, match="replicas are vLLM servers"):
        TransformersInferenceConfig(backend="transformers", replicas=2)


# --- vLLM itself -------------------------------------------------------------------------------------------------


def engines(pid: int) -> list[int]:
    """The processes of a server's group but the guard, by their parents' order."""
    groups = [path.parent for path in Path("/proc").glob("[0-9]*/stat") if _group(path) == pid]
    return [int(path.name) for path in groups if int(path.name) != pid]


def _group(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[2])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself(smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real servers: one is killed, its engine with it, and all is answered; nothing is left of either."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    ask = Asking(smollm, tmp_path, max_model_len=512, max_new_tokens=16, dtype="bfloat16", startup_timeout=400)
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
    scored = GenerationRequest("scored", ({"role": "user", "content": "Give a score."},), schema=schema)
    try:
        thread = threading.Thread(target=ask, args=([*REQUESTS, scored],))
        thread.start()
        until(lambda: len(ask.outcomes) > 2, 500)
        assert ask.teacher._fleet is not None
        servers = [replica.server for replica in ask.teacher._fleet._replicas]
        guards = [server._process.pid for server in servers if server._process is not None]
        everything = [process for guard in guards for process in [guard, *engines(guard)]]
        assert len(everything) >= 5
        first = next(replica for replica in ask.teacher._fleet._replicas if not replica.endpoint.away)
        assert first.server._process is not None
        os.kill(max(engines(first.server._process.pid)), signal.SIGKILL)
        thread.join(600)
        everything += [pid for server in servers if server._process for pid in engines(server._process.pid)]
    finally:
        ask.teacher.close()
    assert Counter(outcome.key for outcome in ask.outcomes) == Counter([*QUESTIONS, "scored"])
    assert all(isinstance(outcome, Completion) and outcome.completion_tokens for outcome in ask.outcomes)
    judged = next(outcome for outcome in ask.outcomes if outcome.key == "scored")
    assert isinstance(judged, Completion) and judged.text is not None and judged.text.startswith('{"score":')
    assert any("is started again (1 of 3)" in line for line in ask.said), ask.said
    assert_all_gone(everything, 20)
    printed = "".join(path.read_text() for path in (tmp_path / "servers").iterdir())
    assert ask.redactor.text(printed) == printed, "the key is in a log"
