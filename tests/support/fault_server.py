"""A server that speaks OpenAI's chat protocol on loopback, and misbehaves to order.

What happens to a request is decided by its prompt and the number of the attempt: a prompt may carry marks
`[[fault:NAME:TIMES]]`, each of which makes its next TIMES attempts end in the fault NAME (see `FAULTS`); TIMES 0 means
always. Attempts past the marks are answered. `plan` draws such prompts from a seed. Every request and every complete
answer is counted, by prompt, so that a test can tell whether anything was paid for twice.

    python tests/support/fault_server.py --port 0 --latency 0        prints the port
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

MARK = re.compile(r"\[\[fault:([a-z0-9_]+):(\d+)\]\]")
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def prompt(text: str, fault: str | None = None, times: int = 0) -> str:
    """A prompt, or a model's name, that meets a fault on its next `times` attempts, or always with 0."""
    return text if fault is None else f"{text} [[fault:{fault}:{times}]]"


def plan(seed: int, count: int, faults: Sequence[str], most: int = 3) -> list[str]:
    """Prompts of which each meets 1 … `most` faults, drawn anew for every attempt, and is answered after them."""
    generator = random.Random(seed)
    prompts = [f"planned {seed}-{n}" for n in range(count)]
    for n in range(count):
        for _ in range(generator.randint(1, most)):
            prompts[n] = prompt(prompts[n], generator.choice(faults), 1)
    return prompts


def planned(text: str, attempt: int) -> str | None:
    """The fault that a prompt's marks order for an attempt, numbered from 1."""
    for name, times in MARK.findall(text):
        if times == "0" or attempt <= int(times):
            return str(name)
        attempt -= int(times)
    return None


def answer_to(text: str) -> str:
    """What the server answers to a prompt."""
    return f"answer to: {text}"


class Drop(Exception):
    """Cut the connection now."""


class Server:
    """One event loop, minimal HTTP/1.1 with keep-alive."""

    def __init__(self, latency: float, models: list[str]) -> None:
        self.latency, self.models, self.active = latency, models, 0
        self.reset()

    def reset(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: dict[str, list[float]] = {}
        self.most_active = self.connections = self.listings = 0

    def stats(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in {"latency", "models", "active"}}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, Drop), contextlib.closing(writer):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                call = Call(self, json.loads(body or b"{}"), headers, writer)
                await self.route(first.split(" ")[1], call)
                await writer.drain()

    async def route(self, path: str, call: Call) -> None:
        if path.endswith("/models"):
            self.listings += 1
            fault = planned(" ".join(self.models), self.listings)
            listed = [{"id": MARK.sub("", name).strip(), "object": "model"} for name in self.models]
            await run(FAULTS[fault], call) if fault else call.json(200, {"object": "list", "data": listed})
        elif path == "/stats":
            call.json(200, self.stats())
        elif path == "/reset":
            self.reset()
            call.json(200, {})
        elif path.endswith("/chat/completions"):
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            try:
                await self.chat(call)
            finally:
                self.active -= 1

    async def chat(self, call: Call) -> None:
        self.attempts[call.text] += 1
        self.times.setdefault(call.text, []).append(time.time())
        self.bodies += [call.body] if len(self.bodies) < 50 else []
        await asyncio.sleep(self.latency)
        fault = planned(call.text, self.attempts[call.text])
        await (run(FAULTS[fault], call) if fault else call.answer({"content": answer_to(call.text)}))


class Call:
    """A request, and the ways to answer it."""

    def __init__(
        self, server: Server, body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter
    ) -> None:
        self.server, self.body, self.writer = server, body, writer
        self.text = str(body["messages"][-1]["content"]) if body.get("messages") else ""
        self.streams = bool(body.get("stream"))
        self.key = headers.get("authorization", "")

    def raw(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """A whole response."""
        shown = {"Content-Type": "application/json", "Content-Length": str(len(content))} | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in shown.items())
        self.writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + content)

    def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self.raw(status, json.dumps(value).encode(), headers)

    def start(self) -> None:
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    def send(self, event: Any, end: str = "\n\n") -> None:
        """One event; text is sent as it is. Nothing is escaped that JSON need not escape."""
        text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        data = f"data: {text}{end}".encode()
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def event(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "chat-1", "model": self.body["model"], "choices": [choice]}

    def events(self, message: dict[str, Any], finish: str) -> Iterator[Any]:
        """The events of an answer, `[DONE]` included."""
        yield self.event({"role": "assistant"})
        for name, value in message.items():
            parts = [value] if not value else [value[: len(value) // 2], value[len(value) // 2 :]]
            yield from (self.event({name: part}) for part in parts)
        yield self.event({}, finish)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield {"id": "chat-1", "model": self.body["model"], "choices": [], "usage": USAGE}
        yield "[DONE]"

    async def answer(self, message: dict[str, Any], finish: str = "stop", pause: float = 0, end: str = "\n\n") -> None:
        """A complete answer: what a paying user is charged for."""
        if self.streams:
            self.start()
            for event in self.events(message, finish):
                self.send(event, end)
                if pause:
                    await self.writer.drain()
                    await asyncio.sleep(pause)
            self.end()
        else:
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
            body = {"id": "chat-1", "model": self.body["model"], "choices": [choice], "usage": USAGE}
            self.raw(200, json.dumps(body, ensure_ascii=False).encode())
        await self.bill()

    async def bill(self) -> None:
        await self.writer.drain()
        self.server.paid[self.text] += 1


# --- faults -----------------------------------------------------------------------------------------------------

Fault = Callable[[Call], Awaitable[None] | None]


async def run(fault: Fault, call: Call) -> None:
    done = fault(call)
    if done is not None:
        await done


def status(code: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> Fault:
    return lambda call: call.json(code, {"error": error}, headers)


def content(data: bytes, kind: str = "application/json", code: int = 200) -> Fault:
    """A body, in which `KEY` stands for what the request's Authorization header said."""
    return lambda call: call.raw(code, data.replace(b"KEY", call.key.encode()), {"Content-Type": kind})


def message(parts: dict[str, Any], finish: str = "stop", pause: float = 0, end: str = "\n\n") -> Fault:
    def fault(call: Call) -> Awaitable[None]:
        told = {name: part and part.replace("KEY", call.key) for name, part in parts.items()}
        return call.answer(told, finish, pause, end)

    return fault


def unless(name: str, text: str, reply: str) -> Fault:
    """Refuse a request that has the parameter `name`."""
    refuse = status(400, {"message": text})
    return lambda call: refuse(call) if name in call.body else call.answer({"content": reply})


def partial(events: Callable[[Call], Sequence[Any]], then: str = "drop", paid: bool = False) -> Fault:
    """Some events of a stream, then `drop`, `end` or `hold` the connection. Without streaming: half a body."""

    async def fault(call: Call) -> None:
        if not call.streams:
            if paid:
                await call.answer({"content": "half an answer"})
                return
            call.raw(200, b'{"choices": [{"message": {"content": "half an ans', {"Content-Length": "500"})
            await call.writer.drain()
            raise Drop
        call.start()
        for event in events(call):
            call.send(event)
        if paid:
            await call.bill()
        await call.writer.drain()
        if then == "hold":
            await hang(call)
        if then == "drop":
            raise Drop
        call.end()

    return fault


def half(call: Call) -> list[Any]:
    return [call.event({"content": "half an ans"})]


def whole(call: Call) -> list[Any]:
    return [*half(call), call.event({"content": "wer"}), call.event({}, "stop")]


def retry_after_date(call: Call) -> None:
    when = email.utils.formatdate(time.time() + 2, usegmt=True)
    call.json(429, {"error": SLOW}, {"Retry-After": when})


async def hang(call: Call, seconds: float = 30) -> None:
    # A client that has given up leaves no trace here, so a hanging request does not count as active.
    call.server.active -= 1
    try:
        await asyncio.sleep(seconds)
    finally:
        call.server.active += 1
    raise Drop


def drop(call: Call) -> None:
    raise Drop


async def trickle(call: Call) -> None:
    """Never silent, never done."""
    call.start() if call.streams else call.raw(200, b"", {"Content-Length": "100000"})
    for _ in range(500):
        call.writer.write(b"4\r\n: x\n\r\n" if call.streams else b" ")
        await call.writer.drain()
        await asyncio.sleep(0.05)
    raise Drop


SLOW = {"message": "slow down"}
HINT = "Rate limit reached, limit 3 / min. Add a payment method at https://platform.openai.com/account/billing."
NO_LENGTH = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
NO_USAGE = "Unrecognized request argument supplied: stream_options"
ECHO = b'{"error": {"message": "Incorrect API key provided: KEY"}}'
FAULTS: dict[str, Fault] = {
    "rate_limit": status(429, SLOW, {"Retry-After": "0.2"}),
    "rate_limit_now": status(429, SLOW, {"Retry-After": "0"}),
    "rate_limit_ms": status(429, SLOW, {"retry-after-ms": "700", "Retry-After": "9"}),
    "rate_limit_second": status(429, SLOW, {"Retry-After": "1"}),
    "rate_limit_minute": status(429, SLOW, {"Retry-After": "60"}),
    "rate_limit_date": retry_after_date,
    "rate_limit_day": status(429, {"message": "come back tomorrow"}, {"Retry-After": "86400"}),
    "rate_limit_hint": status(429, {"message": HINT, "type": "requests", "code": "rate_limit_exceeded"}),
    "quota": status(429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    "server_error": status(500, {"message": "oops"}),
    "unavailable": status(503, {"message": "overloaded"}),
    "bad_request": status(400, {"message": "maximum context length is 8 tokens"}),
    "unprocessable": status(422, {"message": "no"}),
    "moderated": status(403, {"message": "your input was flagged", "code": 403}),
    "auth": content(ECHO, code=401),
    "model": status(404, {"message": "The model `x` does not exist", "code": "model_not_found"}),
    "hang": hang,
    "trickle": trickle,
    "drop": drop,
    "drop_body": partial(lambda call: []),
    "drop_stream": partial(half),
    "end_early": partial(half, "end"),
    "only_done": partial(lambda call: ["[DONE]"], "end"),
    "error_event": partial(lambda call: [*half(call), {"error": {"message": "backend busy", "code": 503}}], "end"),
    "broken_event": partial(lambda call: [*half(call), '{"id": '], "end"),
    "html": content(b"<html>Bad gateway</html>", "text/html"),
    "truncated": content(b'{"id": "chat-1", "choices": [{"mess'),
    "wrong_shape": content(b'{"id": "chat-1", "choices": []}'),
    "not_utf8": content(b'{"id": "\xff\xfe\xfa'),
    "not_utf8_stream": content(b'data: {"id": "\xff\xfe\xfa"}\n\n', "text/event-stream"),
    "nested": content(b'{"choices": ' + b"[" * 100_000),
    "error_in_200": content(b'{"error": {"message": "backend busy", "code": 503}}'),
    "echo_key": content(ECHO, code=400),
    "echo_key_often": content(b'{"error": {"message": "' + b"KEY " * 400 + b'"}}', code=400),
    "echo_key_in_garbage": content(b"KEY " * 400, "text/html"),
    # Complete answers, paid for, whatever is in them.
    "empty": message({"content": ""}),
    "blank": message({"content": " \n "}),
    "null": message({"content": None}),
    "filtered": message({"content": ""}, "content_filter"),
    "long": message({"content": "cut off"}, "length"),
    "reasoning": message({"reasoning_content": "let me think", "content": "so it is"}),
    "reasoning_short": message({"reasoning": "let me think", "content": "so it is"}),
    "refusal": message({"content": None, "refusal": "I must not"}),
    "separators": message({"content": "a\u2028b\u2029c\x85d\r\ne\x1cf"}),
    "crlf": message({"content": "plain"}, end="\r\n\r\n"),
    "slow_stream": message({"content": "slow but sure"}, pause=0.2),
    "echo_key_in_answer": message({"content": "your header was KEY"}),
    "no_done": partial(whole, "end", paid=True),
    "drop_after_finish": partial(whole, "drop", paid=True),
    "hang_after_finish": partial(whole, "hold", paid=True),
    "garbage_after_finish": partial(lambda call: [*whole(call), '{"id": '], "end", paid=True),
    "no_stream_options": unless("stream_options", NO_USAGE, "plain"),
    "wants_max_completion_tokens": unless("max_tokens", NO_LENGTH, "renamed"),
}


# --- use ----------------------------------------------------------------------------------------------------------


class Running:
    """A server in a process of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, Any]:
        return self._ask("stats")

    def reset(self) -> None:
        """Forget all requests so far."""
        self._ask("reset", b"")

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", body, timeout=10) as response:
            return dict(json.loads(response.read()))


@contextlib.contextmanager
def running(latency: float = 0.0, models: tuple[str, ...] = ("teacher-1",)) -> Iterator[Running]:
    """Start a server on a free port of the loopback interface."""
    command = [sys.executable, str(Path(__file__)), "--port", "0", "--latency", str(latency), "--models", *models]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Running(int(process.stdout.readline()))
        finally:
            process.kill()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--models", nargs="*", default=["teacher-1"])
    arguments = parser.parse_args()
    handle = Server(arguments.latency, arguments.models).handle
    async with await asyncio.start_server(handle, "127.0.0.1", arguments.port, backlog=2048) as listening:
        print(listening.sockets[0].getsockname()[1], flush=True)
        await listening.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
