"""A program that takes vLLM's options and speaks its protocol, with a helper process as vLLM's engine is one.

An answer is the prompt's last tokens in reverse, then the end token. What it is to do wrong is in files of the folder
FAKE_VLLM, where it also writes what it was asked and which processes there are:

    started            `{"port", "pid", "engine", "key", "options", "devices"}`, a line each
    asked-PORT         the bodies that it answered, a line each
    latency            seconds that an answer takes
    slow-NUMBER        seconds that the NUMBERth start (from 0, of all servers) takes
    fails-NUMBER       the NUMBERth start ends with a message
    sick-PORT          its health is 503
    deadly             prompts, as a list of lists of tokens, that kill the program 0.1 s after it gets one
    says-so            …after which it answers 500 to all that it has, as vLLM does when its engine dies
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

END = 2
LONGEST = 512
FOLDER = Path(os.environ["FAKE_VLLM"])
KEY = os.environ["VLLM_API_KEY"]
LOCK = threading.Lock()
DYING = threading.Event()


def setting(name: str) -> float:
    path = FOLDER / name
    return float(path.read_text()) if path.exists() else 0.0


def deadly() -> list[list[int]]:
    path = FOLDER / "deadly"
    return json.loads(path.read_text()) if path.exists() else []


def die() -> None:
    time.sleep(0.1)
    if (FOLDER / "says-so").exists():
        DYING.set()
        time.sleep(0.7)
    os.kill(os.getpid(), signal.SIGKILL)


def told(name: str, value: Any) -> int:
    """Append a line to a file; the number of lines before it."""
    with LOCK, (FOLDER / name).open("a+") as file:
        # Servers that start together must not take one number.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = len(file.readlines())
        file.write(json.dumps(value) + "\n")
    return before


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        if self.headers["authorization"] == f"Bearer {KEY}":
            return True
        self.send(401, {"error": {"message": f"not {KEY}"}})
        return False

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send(503 if (FOLDER / f"sick-{self.server.server_port}").exists() else 200, {})
        elif self.allowed():
            self.send(200, {"data": [{"id": OPTIONS["served_model_name"], "max_model_len": LONGEST}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.allowed():
            return
        assert self.path == "/v1/completions" and body["return_token_ids"] is True
        assert body["model"] == OPTIONS["served_model_name"]
        if body["prompt"] in deadly():
            threading.Thread(target=die).start()
        DYING.wait(setting("latency"))
        if DYING.is_set():
            self.send(500, {"error": {"message": "EngineCore encountered an issue", "code": 500}})
            return
        written = [*body["prompt"][-8:][::-1][: body["max_tokens"] - 1], END]
        told(f"asked-{self.server.server_port}", body)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(written)}
        self.send(200, {"choices": [{"text": "", "finish_reason": "stop", "token_ids": written}], "usage": usage})

    def log_message(self, *arguments: Any) -> None:
        pass


def main() -> None:
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("fake vLLM starts", flush=True)
    devices = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "VLLM_CPU_OMP_THREADS_BIND")}
    ids = {"port": OPTIONS["port"], "pid": os.getpid(), "engine": engine.pid, "key": KEY}
    number = told("started", {**ids, "options": OPTIONS, "devices": devices})
    time.sleep(setting(f"slow-{number}"))
    if (FOLDER / f"fails-{number}").exists():
        engine.kill()
        sys.exit("ValueError: the KV cache has no room")
    print(f"loaded number {number}", flush=True)
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("127.0.0.1", OPTIONS["port"]), Handler).serve_forever()


def options() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    for name in ("model", "served-model-name", "host", "dtype", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "seed", "max-num-seqs", "tensor-parallel-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    for name in ("enforce-eager", "enable-chunked-prefill", "no-enable-chunked-prefill", "trust-remote-code"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    return vars(parser.parse_args())


if __name__ == "__main__":
    OPTIONS = options()
    main()
