"""A server that speaks OpenAI's chat protocol on loopback, and misbehaves to order.

What happens to a request is decided by its prompt: a prompt may carry `[[fault:NAME:TIMES]]`, which makes its first
TIMES attempts end in the fault NAME (see `FAULTS`) and later ones succeed; TIMES 0 means always. Prompts without a
mark are answered. Every request and every complete answer is counted, by prompt, so that a test can tell whether
anything was paid for twice.

    python -m tests.support.fault_server --port 0        prints the port
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = re.compile(r"\[\[fault:([a-z0-9_]+):(\d+)\]\]")
ROOT = Path(__file__).resolve().parents[2]


def prompt(text: str, fault: str | None = None, times: int = 0) -> str:
    """A prompt that meets a fault on its first `times` attempts, or always with 0."""
    return text if fault is None else f"{text} [[fault:{fault}:{times}]]"


def answer_to(text: str) -> str:
    """What the server answers to a prompt."""
    return f"answer to: {text}"


class Drop(Exception):
    """Cut the connection now."""


class Server:
    """One event loop, minimal HTTP/1.1 with keep-alive."""

    def __init__(self, latency: float, models: list[str]) -> None:
        self.latency = latency
        self.models = models
        self.attempts: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: dict[str, list[float]] = {}
        self.active = self.most_active = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ", 2)
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self.route(method, path, headers, body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, Drop, ValueError):
            pass
        finally:
            writer.close()

    async def route(
        self, method: str, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if path.endswith("/models"):
            send_json(
                writer, 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            )
        elif path == "/stats":
            send_json(
                writer,
                200,
                {
                    "attempts": self.attempts,
                    "paid": self.paid,
                    "bodies": self.bodies,
                    "times": self.times,
                    "most_active": self.most_active,
                },
            )
        elif path.endswith("/chat/completions"):
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            try:
                await self.chat(json.loads(body), headers, writer)
            finally:
                self.active -= 1
        else:
            send_json(writer, 404, {"error": {"message": "no such path"}})

    async def chat(self, body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        text = body["messages"][-1]["content"]
        self.attempts[text] += 1
        self.times.setdefault(text, []).append(time.time())
        if len(self.bodies) < 50:
            self.bodies.append(body)
        if self.latency:
            await asyncio.sleep(self.latency)
        mark = MARK.search(text)
        if mark and (mark[2] == "0" or self.attempts[text] <= int(mark[2])):
            await FAULTS[mark[1]](self, body, headers, writer)
            return
        await self.answer(body, writer, {"content": answer_to(text)})

    async def answer(
        self, body: dict[str, Any], writer: asyncio.StreamWriter, message: dict[str, Any], finish: str = "stop"
    ) -> None:
        """A complete answer: what a paying user is charged for."""
        text = body["messages"][-1]["content"]
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
            send_json(writer, 200, {"id": "chat-1", "model": body["model"], "choices": [choice], "usage": usage})
        else:
            start_stream(writer)
            for event in stream_events(body, message, finish):
                send_chunk(writer, event)
            if (body.get("stream_options") or {}).get("include_usage"):
                send_chunk(writer, {"id": "chat-1", "model": body["model"], "choices": [], "usage": usage})
            send_chunk(writer, "[DONE]")
            end_stream(writer)
        await writer.drain()
        self.paid[text] += 1


# --- wire -------------------------------------------------------------------------------------------------------


def send_raw(writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    kind = "" if "Content-Type" in (headers or {}) else "Content-Type: application/json\r\n"
    head = f"HTTP/1.1 {status} X\r\n{kind}Content-Length: {len(body)}\r\n{extra}\r\n"
    writer.write(head.encode() + body)


def send_json(writer: asyncio.StreamWriter, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    send_raw(writer, status, json.dumps(value).encode(), headers)


def start_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")


def send_chunk(writer: asyncio.StreamWriter, event: Any) -> None:
    text = event if isinstance(event, str) else json.dumps(event)
    data = f"data: {text}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def end_stream(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")


def stream_events(body: dict[str, Any], message: dict[str, Any], finish: str) -> Iterator[dict[str, Any]]:
    def event(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"id": "chat-1", "model": body["model"], "choices": [choice]}

    yield event({"role": "assistant"})
    for name, value in message.items():
        if value is None or value == "":
            yield event({name: value})
        else:
            half = len(value) // 2
            yield event({name: value[:half]})
            yield event({name: value[half:]})
    yield event({}, finish)


# --- faults -----------------------------------------------------------------------------------------------------


def status_fault(status: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    async def fault(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        send_json(writer, status, {"error": error}, headers)

    return fault


def raw_fault(content: bytes, kind: str = "application/json") -> Any:
    async def fault(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        send_raw(writer, 200, content, {"Content-Type": kind})

    return fault


def message_fault(message: dict[str, Any], finish: str = "stop") -> Any:
    async def fault(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await server.answer(body, writer, message, finish)

    return fault


async def retry_after_date(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    when = email.utils.formatdate(time.time() + 2, usegmt=True)
    send_json(writer, 429, {"error": {"message": "slow down"}}, {"Retry-After": when})


async def hang(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    # A client that has given up leaves no trace here, so a hanging request does not count as active.
    server.active -= 1
    try:
        await asyncio.sleep(30)
    finally:
        server.active += 1
    raise Drop


async def drop(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    raise Drop


async def drop_body(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id": "chat')
    await writer.drain()
    raise Drop


async def drop_stream(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    """Half an answer, then nothing."""
    if not body.get("stream"):
        await drop_body(server, body, request, writer)
    start_stream(writer)
    send_chunk(writer, next(stream_events(body, {}, "stop")))
    choice = {"index": 0, "delta": {"content": "half an ans"}, "finish_reason": None}
    send_chunk(writer, {"id": "chat-1", "model": body["model"], "choices": [choice]})
    await writer.drain()
    raise Drop


async def end_early(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    """A stream that closes properly without ever finishing the answer."""
    if not body.get("stream"):
        await drop(server, body, request, writer)
    start_stream(writer)
    choice = {"index": 0, "delta": {"content": "half an ans"}, "finish_reason": None}
    send_chunk(writer, {"id": "chat-1", "model": body["model"], "choices": [choice]})
    end_stream(writer)


async def echo_key(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    message = f"Incorrect API key provided: {request.get('authorization', '')}"
    send_json(writer, 400, {"error": {"message": message}})


async def echo_key_in_answer(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    await server.answer(body, writer, {"content": f"your header was {request.get('authorization', '')}"})


async def no_stream_options(server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
    if "stream_options" in body:
        send_json(writer, 400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}})
    else:
        await server.answer(body, writer, {"content": "plain"})


async def wants_max_completion_tokens(
    server: Server, body: Any, request: dict[str, str], writer: asyncio.StreamWriter
) -> None:
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens' instead."
        send_json(writer, 400, {"error": {"message": message}})
    else:
        await server.answer(body, writer, {"content": f"at most {body['max_completion_tokens']}"})


FAULTS: dict[str, Any] = {
    "rate_limit": status_fault(429, {"message": "slow down"}, {"Retry-After": "0.2"}),
    "rate_limit_second": status_fault(429, {"message": "slow down"}, {"Retry-After": "1"}),
    "rate_limit_date": retry_after_date,
    "rate_limit_day": status_fault(429, {"message": "come back tomorrow"}, {"Retry-After": "86400"}),
    "quota": status_fault(429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
    "server_error": status_fault(500, {"message": "oops"}),
    "unavailable": status_fault(503, {"message": "overloaded"}),
    "bad_request": status_fault(400, {"message": "maximum context length is 8 tokens"}),
    "unprocessable": status_fault(422, {"message": "no"}),
    "auth": status_fault(401, {"message": "bad key"}),
    "model": status_fault(404, {"message": "The model `x` does not exist", "code": "model_not_found"}),
    "hang": hang,
    "drop": drop,
    "drop_body": drop_body,
    "drop_stream": drop_stream,
    "end_early": end_early,
    "html": raw_fault(b"<html>Bad gateway</html>", "text/html"),
    "truncated": raw_fault(b'{"id": "chat-1", "choices": [{"mess'),
    "wrong_shape": raw_fault(b'{"id": "chat-1", "choices": []}'),
    "not_utf8": raw_fault(b'{"id": "\xff\xfe\xfa'),
    "error_in_200": raw_fault(b'{"error": {"message": "backend busy", "code": 503}}'),
    "empty": message_fault({"content": ""}),
    "blank": message_fault({"content": " \n "}),
    "null": message_fault({"content": None}),
    "filtered": message_fault({"content": ""}, "content_filter"),
    "long": message_fault({"content": "cut off"}, "length"),
    "reasoning": message_fault({"reasoning_content": "let me think", "content": "so it is"}),
    "echo_key": echo_key,
    "echo_key_in_answer": echo_key_in_answer,
    "no_stream_options": no_stream_options,
    "wants_max_completion_tokens": wants_max_completion_tokens,
}


# --- use ----------------------------------------------------------------------------------------------------------


class Running:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as response:
            found: dict[str, Any] = json.loads(response.read())
        return found

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def running(latency: float = 0.0, models: tuple[str, ...] = ("teacher-1",)) -> Iterator[Running]:
    """Start a server on a free port of the loopback interface."""
    command = [sys.executable, "-m", "tests.support.fault_server", "--port", "0", "--latency", str(latency)]
    command += ["--models", *models]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    server = Running(process, int(process.stdout.readline()))
    try:
        yield server
    finally:
        server.stop()


async def serve(port: int, latency: float, models: list[str]) -> None:
    server = Server(latency, models)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", port, backlog=2048)
    print(listening.sockets[0].getsockname()[1], flush=True)
    async with listening:
        await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--models", nargs="*", default=["teacher-1"])
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, arguments.latency, arguments.models))


if __name__ == "__main__":
    main()
