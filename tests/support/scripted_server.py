"""A chat completions API whose answers a test writes, on a real socket."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedServer:
    """An API that thinks up an instruction for each question; counts questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.say = lambda text, number: (
            f"<instruction>Describe the {number}th {'very ' * (number % 4)}odd thing</instruction>"
        )
        self.finish = lambda number: "stop"
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                with lock:
                    outer.asked.append(text)
                    number = len(outer.asked)
                message = {"role": "assistant", "content": outer.say(text, number)}
                choice = {"index": 0, "message": message, "finish_reason": outer.finish(number)}
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                answer = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
                payload = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
