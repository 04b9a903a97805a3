"""A server on loopback that speaks OpenAI's Batch API, and misbehaves to order. It runs in the test's own process.

What becomes of a row is decided by its prompt, as at the fault server: a mark `[[fault:NAME:TIMES]]` makes its next
TIMES appearances in a batch end in the fault NAME (`missing`, `batch_expired`, or one of `ERRORS`), TIMES 0 always.
What becomes of a call, or of a batch, is queued by the test in `faults` and `endings`.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import threading
import time
import urllib.parse
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.fault_server import USAGE, answer_to, planned

ERRORS: dict[str, Any] = {
    "rate_limit": (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}),
    "server_error": (500, {"error": {"message": "oops"}}),
    "bad_request": (400, {"error": {"message": "maximum context length is 8 tokens"}}),
    "quota": (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}),
    "garbage": (200, {"choices": []}),
}
NO_LENGTH = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead; this is not supported."


class BatchServer:
    """Files and batches, and who asked for what.

    Attributes:
        faults: by call (upload, create, list, look, content), what happens to the next ones: an HTTP status, `hold`
            (done, but never answered), `hold_before` (neither done nor answered), `half` (half of a file).
        endings: how the next batches end: a status, or `failed:CODE`.
        looks: how often a batch is looked at before it ends.
        submitted: how often a prompt was in a batch that was created.
        singles: how often it was asked alone.
    """

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.faults: dict[str, deque[int | str]] = defaultdict(deque)
        self.endings: deque[str] = deque()
        self.looks = 0
        self.wants_max_completion_tokens = False
        self.calls: Counter[str] = Counter()
        self.submitted: Counter[str] = Counter()
        self.singles: Counter[str] = Counter()
        self.lines: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        self.released = threading.Event()

    def wait_for(self, call: str, times: int = 1) -> None:
        """Wait until a call has come in so often."""
        deadline = time.monotonic() + 30
        while self.calls[call] < times:
            assert time.monotonic() < deadline, f"no {call}"
            time.sleep(0.01)

    # --- what a batch brings ----------------------------------------------------------------------------------

    def keep(self, content: bytes) -> str:
        name = f"file-{len(self.files) + 1}"
        self.files[name] = content
        return name

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        batch = {
            "id": f"batch_{len(self.batches) + 1}",
            "object": "batch",
            "endpoint": asked["endpoint"],
            "status": "validating",
            "created_at": int(time.time()),
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "metadata": asked.get("metadata"),
            "output_file_id": None,
            "error_file_id": None,
            "looks": 0,
        }
        self.batches[batch["id"]] = batch
        for line in self._lines(batch):
            self.submitted[_text(line)] += 1
            self.lines.append(line)
        return batch

    def look(self, name: str) -> dict[str, Any] | None:
        batch = self.batches.get(name)
        if batch is not None and batch["status"] in {"validating", "in_progress"}:
            batch["looks"] += 1
            batch["status"] = "in_progress"
            if batch["looks"] > self.looks:
                self._end(batch, self.endings.popleft() if self.endings else "completed")
        return batch

    def _lines(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def _end(self, batch: dict[str, Any], ending: str) -> None:
        status, _, code = ending.partition(":")
        batch["status"] = status
        if status == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": code, "message": f"it is {code}", "line": None}]}
            return
        lines = self._lines(batch)
        # A batch that is cut short has got through half of its rows.
        through = len(lines) if status == "completed" else len(lines) // 2
        answers: list[Any] = []
        errors: list[Any] = []
        for number, line in enumerate(lines):
            fault = self._fault(line) if number < through else f"batch_{status}"
            if fault is None:
                answers.append(_line(line, 200, _answer(line)))
            elif fault.startswith("batch_"):
                told = {"code": fault, "message": "This request could not be executed."}
                errors.append({"custom_id": line["custom_id"], "response": None, "error": told})
            elif fault == "garbage":
                answers.append(_line(line, *ERRORS[fault]))
            elif fault == "no_length":
                errors.append(_line(line, 400, {"error": {"message": NO_LENGTH}}))
            elif fault != "missing":
                errors.append(_line(line, *ERRORS[fault]))
        for name, found in (("output_file_id", answers), ("error_file_id", errors)):
            if found:
                # Answers come in any order.
                content = b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in reversed(found))
                batch[name] = self.keep(content)

    def _fault(self, line: dict[str, Any]) -> str | None:
        if self.wants_max_completion_tokens and "max_tokens" in line["body"]:
            return "no_length"
        return planned(_text(line), self.submitted[_text(line)])


def _text(line: dict[str, Any]) -> str:
    return str(line["body"]["messages"][-1]["content"])


def _answer(line: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer_to(_text(line))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "chat-1", "model": line["body"]["model"], "choices": [choice], "usage": USAGE}


def _line(line: dict[str, Any], status: int, body: Any) -> dict[str, Any]:
    return {"custom_id": line["custom_id"], "response": {"status_code": status, "body": body}, "error": None}


# --- HTTP -------------------------------------------------------------------------------------------------------


def _handler(server: BatchServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            path = url.path.removeprefix("/v1/").split("/")
            if path[0] == "models":
                self.answer(200, {"object": "list", "data": [{"id": "teacher-1", "object": "model"}]})
            elif path == ["batches"]:
                after = dict(urllib.parse.parse_qsl(url.query)).get("after")
                self.serve("list", lambda: _page(server, after))
            elif path[0] == "batches":
                self.serve("look", lambda: server.look(path[1]))
            else:
                self.serve("content", lambda: server.files.get(path[1]))

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/files"):
                self.serve("upload", lambda: {"id": server.keep(self.uploaded(content)), "object": "file"})
            elif self.path.endswith("/batches"):
                self.serve("create", lambda: server.create(json.loads(content)))
            else:
                line = {"body": json.loads(content)}
                with server.lock:
                    server.singles[_text(line)] += 1
                self.answer(200, _answer(line))

        def uploaded(self, content: bytes) -> bytes:
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
            fields = {part.get_param("name", header="content-disposition"): part for part in parts.iter_parts()}
            assert fields["purpose"].get_content().strip() == "batch"
            return bytes(fields["file"].get_payload(decode=True))

        def serve(self, call: str, do: Any) -> None:
            with server.lock:
                fault = server.faults[call].popleft() if server.faults[call] else None
                made: Any = do() if fault in {None, "hold", "half"} else None
                server.calls[call] += 1
            if isinstance(fault, int):
                self.answer(fault, {"error": {"message": "to order"}}, {"retry-after-ms": "10"})
            elif fault in {"hold", "hold_before"}:
                server.released.wait()
                self.close_connection = True
            elif fault == "half":
                self.answer(200, made[: len(made) // 2], {"Content-Length": str(len(made))})
                self.close_connection = True
            elif made is None:
                self.answer(404, {"error": {"message": "there is none"}})
            else:
                self.answer(200, made)

        def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            shown = {"Content-Type": "application/json", "Content-Length": str(len(content))} | (headers or {})
            for name, text in shown.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    return Handler


def _page(server: BatchServer, after: str | None) -> dict[str, Any]:
    """Two batches at most, the newest first."""
    names = list(reversed(server.batches))
    start = names.index(after) + 1 if after is not None else 0
    return {"object": "list", "data": [server.batches[name] for name in names[start : start + 2]], "has_more": True}


@contextmanager
def batch_server() -> Iterator[BatchServer]:
    """Start a server in threads of this process."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    http.daemon_threads = True
    server = BatchServer(http.server_address[1])
    http.RequestHandlerClass = _handler(server)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        http.server_close()
        thread.join()
