"""The job `agent_trajectories` with a real server and functions in the sandbox: played, killed, resumed, learned."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.example_server import server_of
from tests.support.jobs import start, write_config

import easydistill
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, Outcome
from easydistill.data.files import read_jsonl
from easydistill.data.messages import is_learned
from easydistill.data.reading import read_samples
from easydistill.engine.interrupt import StopSignal
from easydistill.errors import EasyDistillError
from easydistill.synthesis.tool_functions import NO_RESULT, NOT_JSON, NOT_REPEATABLE, FunctionTeacher

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/agent_trajectories"


class Shop:
    """The example's server: counts requests by their content, fails on order, and can be stopped half-way."""

    def __init__(self) -> None:
        module = server_of(EXAMPLE)
        self.asked: Counter[str] = Counter()
        self.statuses: list[int] = []
        self.stop_after: Callable[[int], bool] = lambda count: False
        self.halted = threading.Event()
        answer, outer, lock = module.message_for, self, threading.Lock()

        class Handler(module.Handler):  # type: ignore[name-defined, misc]
            def do_POST(self) -> None:  # noqa: N802
                with lock:
                    status = outer.statuses.pop(0) if outer.statuses else 200
                    halted = outer.stop_after(outer.asked.total())
                if status == 200 and not halted:
                    super().do_POST()
                    return
                self.rfile.read(int(self.headers["Content-Length"]))
                if halted:
                    outer.halted.set()
                    threading.Event().wait(30)
                self.send_response(status if not halted else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def counting(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
            with lock:
                self.asked[json.dumps([messages, tools], sort_keys=True)] += 1
            found: dict[str, Any] = answer(messages, tools)
            return found

        module.message_for = counting  # type: ignore[attr-defined]
        self._http = module.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    yield made
    made.close()


def job(shop: Shop, folder: Path, tasks: int | None = None, **synthesis: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "job_type": "agent_trajectories",
        "output_dir": str(folder / "run"),
        "dataset": {
            "instruction_path": str(EXAMPLE / "tasks.jsonl"),
            "labeled_path": str(folder / "chats.jsonl"),
            "max_samples": tasks,
        },
        "inference": {"base_url": shop.url, "max_new_tokens": 256, "max_retry_wait": 0.1, "max_concurrency": 2},
        "synthesis": {
            "definitions": str(EXAMPLE / "tools.json"),
            "tools": {"kind": "functions", "file": str(EXAMPLE / "shop.py")},
            **synthesis,
        },
    }


def test_from_tasks_to_a_student_that_learns_the_calls(shop: Shop, tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from easydistill.data.chat import ChatRenderer

    shop.statuses = [429, 500, 200, 503]
    result = easydistill.run(job(shop, tmp_path), quiet=True)
    assert result.exit_code == 0 and max(shop.asked.values()) == 1
    # Functions cost nothing: only the server's answers are counted.
    spent = json.loads((tmp_path / "run/summary.json").read_text())["stages"]["synthesise"]["metrics"]
    counted = [value for name, value in spent.items() if name.startswith("spent_by_")]
    assert counted and all(value["answers_without_counts"] == 0 for value in counted)
    assert counted[0]["answers"] == shop.asked.total()
    chats, rejected = read_samples(tmp_path / "chats.jsonl", labelled=True)
    assert len(chats) == 14 and not rejected
    by_id = {chat.id: chat for chat in chats}
    # The function changed the order, and the next call of the chat knew it.
    lamp = by_id["cancel-lamp"]
    said = [json.loads(str(message["content"])) for message in lamp.messages if message["role"] == "tool"]
    assert said[0]["status"] == "open" and "changed_mind" in said[1]["error"] and said[2]["status"] == "cancelled"
    assert [message.get("weight") for message in lamp.messages].count(0) == 1
    assert "shipped" in str(by_id["cancel-kettle"].messages[-1]["content"])
    again, _ = read_samples(next((tmp_path / "run/stages").glob("*-synthesise")) / "labeled.parquet", labelled=True)
    assert [(row.messages, row.tools) for row in again] == [(row.messages, row.tools) for row in chats]

    # What is learned: every call and answer of the assistant but the invalid call, and nothing that it reads.
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template = ROOT / "examples/agent_traces/chat.jinja"
    renderer = ChatRenderer(tokenizer, frozenset({tokenizer.eos_token_id}), template.read_text(encoding="utf-8"))
    for chat in chats:
        rendered = renderer.render(chat)
        text = tokenizer.decode([token for token, on in zip(rendered.ids, rendered.mask, strict=True) if on])
        learned = [message for message in chat.messages if is_learned(message)]
        assert text.count("<|im_end|>") == len(learned)
        assert text.count("<tool_call>") == sum(len(message.get("tool_calls", ())) for message in learned)
        assert "changed_mind" not in text and "tool_response" not in text and "error" not in text
        # But for what it repeats in a call: an address, a number.
        told = [str(message["content"]) for message in chat.messages if message["role"] == "user"]
        assert all(words not in text for words in told if " " in words)

    training = {"max_steps": 1, "per_device_train_batch_size": 2, "max_length": 2048}
    tuned = easydistill.run(
        {
            "job_type": "black_box_kd_local",
            "output_dir": str(tmp_path / "sft"),
            "dataset": {"labeled_path": str(tmp_path / "chats.jsonl"), "template": str(template)},
            "models": {"student": str(tiny_model)},
            "training": training,
            "evaluation": {"enabled": False},
        },
        quiet=True,
    )
    assert tuned.student.is_dir()
    report = (tmp_path / "run/report.md").read_text()
    assert "cancel_order" in report and "grounded" in report


def test_a_killed_run_goes_on_and_asks_nothing_twice(shop: Shop, tmp_path: Path) -> None:
    whole = easydistill.run(job(shop, tmp_path / "whole", 4), quiet=True)
    assert whole.exit_code == 0
    once = shop.asked.copy()
    shop.asked.clear()
    torn = write_config(tmp_path, job(shop, tmp_path / "torn", 4))
    for stop in (9, 17):
        shop.stop_after = lambda count, stop=stop: count >= stop  # type: ignore[misc]
        shop.halted.clear()
        process = start(torn)
        assert shop.halted.wait(60)
        process.kill()
        process.communicate()
    shop.stop_after = lambda count: False
    assert easydistill.run(torn, quiet=True).exit_code == 0
    assert (tmp_path / "torn/chats.jsonl").read_bytes() == (tmp_path / "whole/chats.jsonl").read_bytes()
    assert set(shop.asked) == set(once)
    # At most what was under way at a kill: two requests at a time.
    assert sum(shop.asked.values()) - len(shop.asked) <= 4


def test_another_threshold_asks_nothing_again(shop: Shop, tmp_path: Path) -> None:
    """The shipped kettle is looked up and not cancelled: one call."""
    easydistill.run(job(shop, tmp_path, 2), quiet=True)
    asked = shop.asked.total()
    assert len(read_samples(tmp_path / "chats.jsonl", labelled=True)[0]) == 2
    (tmp_path / "chats.jsonl").unlink()
    easydistill.run(job(shop, tmp_path, 2, min_calls=2), quiet=True)
    (kept,), _ = read_samples(tmp_path / "chats.jsonl", labelled=True)
    assert kept.id == "cancel-lamp" and shop.asked.total() == asked


# --- functions ----------------------------------------------------------------------------------------------------

FILE = """
import random, time
COUNT = 0
def setup(environment):
    global COUNT
    COUNT = environment["start"]
def add(number):
    global COUNT
    COUNT += number
    print("noise")
    return {"count": COUNT}
def draw():
    return random.random()
def clock():
    return time.time_ns()
def a_set():
    return {1}
def nothing(text=""):
    return text
def broken():
    raise KeyError("no such thing")
def leaves():
    raise SystemExit("bye")
def hangs():
    while True: pass
def reads():
    return open("/etc/passwd_of_nobody").read()
"""


@pytest.fixture
def teacher(tmp_path: Path) -> FunctionTeacher:
    (tmp_path / "tools.py").write_text(FILE)
    return FunctionTeacher(tmp_path / "tools.py", seconds=3, workers=2)


def run(teacher: FunctionTeacher, *commands: dict[str, Any]) -> list[Outcome]:
    found: dict[str, Outcome] = {}
    requests = [
        GenerationRequest(str(number), ({"role": "user", "content": json.dumps(command)},))
        for number, command in enumerate(commands)
    ]
    teacher.generate(
        requests, lambda key: False, lambda items: found.update({item.key: item for item in items}), StopSignal()
    )
    return [found[request.key] for request in requests]


def command(
    name: str, *before: tuple[str, dict[str, Any], str], environment: Any = None, **given: Any
) -> dict[str, Any]:
    earlier = [{"name": called, "arguments": arguments, "content": content} for called, arguments, content in before]
    return {"environment": environment, "before": earlier, "call": {"name": name, "arguments": given}}


def content(outcome: Outcome) -> Any:
    assert isinstance(outcome, Completion), outcome
    return json.loads(outcome.text or "")


def test_functions_remember_the_chat_and_nothing_else(teacher: FunctionTeacher) -> None:
    start_at = {"start": 10}
    first = ("add", {"number": 1}, '{"count": 11}')
    drawn = run(teacher, command("draw"))[0]
    alone, second, fresh, other, same = run(
        teacher,
        command("add", environment=start_at, number=1),
        command("add", first, environment=start_at, number=5),
        command("add", number=1),
        command("add", ("add", {"number": 1}, '{"count": 12}'), environment=start_at, number=1),
        command("draw"),
    )
    assert content(alone) == {"content": '{"count": 11}', "failed": False}
    assert content(second)["content"] == '{"count": 16}' and content(fresh)["content"] == '{"count": 1}'
    assert isinstance(other, Failure) and other.reason == NOT_REPEATABLE and "'{\"count\": 12}'" in other.detail
    # Random choices are the same whenever a call is run again.
    assert content(drawn) == content(same)


def test_what_functions_may_do_wrong(teacher: FunctionTeacher) -> None:
    raised, left, surprised, no_json, hung, empty, told = run(
        teacher,
        command("broken"),
        command("leaves"),
        command("add", nonsense=1),
        command("a_set"),
        command("hangs"),
        command("nothing"),
        command("reads"),
    )
    assert content(raised) == {"content": '{"error": "KeyError: \'no such thing\'"}', "failed": True}
    assert content(left)["failed"] and "unexpected keyword" in content(surprised)["content"]
    assert isinstance(no_json, Failure) and no_json.reason == NOT_JSON and "set" in no_json.detail
    assert isinstance(hung, Failure) and hung.reason == NO_RESULT
    assert content(empty)["content"] == '""', "a result that is empty is still a result"
    assert content(told)["failed"]
    clock = run(teacher, command("clock", ("clock", {}, "0")))[0]
    assert isinstance(clock, Failure) and clock.reason == NOT_REPEATABLE


def test_a_file_that_does_not_run_ends_the_run(tmp_path: Path) -> None:
    for text in ("import numpy\ndef f(): pass", FILE):
        (tmp_path / "tools.py").write_text(text)
        broken = FunctionTeacher(tmp_path / "tools.py", seconds=3, workers=1)
        with pytest.raises(EasyDistillError, match="does not run in the sandbox"):
            run(broken, command("f", environment={"nothing": 1}))


def test_a_task_without_its_function_is_rejected_before_anything_is_asked(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text((EXAMPLE / "shop.py").read_text().replace("def find_orders", "def other"))
    with pytest.raises(EasyDistillError, match=r"no_function ×14"):
        easydistill.run(job(shop, tmp_path, tools={"kind": "functions", "file": str(tmp_path / "few.py")}), quiet=True)
    assert not shop.asked
    rejected = list(read_jsonl(next((tmp_path / "run/stages").glob("*-synthesise")) / "rejected.jsonl"))
    assert "find_orders" in rejected[0]["detail"]
