"""PAI-EAS: a student made a service, and services as teachers."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.clouds import golden
from tests.support.dlc_server import dlc_server
from tests.support.jobs import run_here, write_config, write_prompts

from easydistill.cli import main

SETTINGS: dict[str, Any] = {
    "target": "eas",
    "image": "registry.example/vllm:0.32",
    "region": "cn-hangzhou",
    "workspace_id": "12345",
    "model": "oss://kd-bucket/runs/kd/student",
    "instance_type": "ecs.gn7i-c8g1.2xlarge",
}
IN_A_GROUP = {
    "instance_type": None,
    "resource_id": "eas-r-abc",
    "cpus": 16,
    "memory_mb": 120_000,
    "gpus": 2,
    "instances": 3,
    "service": "our_student",
    "served_name": "Our student",
    "max_model_len": 8192,
    "vllm": {"gpu-memory-utilization": 0.95, "enable-prefix-caching": True, "enable-chunked-prefill": False},
    "env": {"VLLM_LOGGING_LEVEL": "WARNING"},
}


@pytest.fixture
def student(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student in its run directory; the tests run in the folder above."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/kd-7/student"
    shutil.copytree(tiny_model, folder)
    return folder


def deploy(settings: dict[str, Any], *more: str) -> int:
    kept = {name: value for name, value in settings.items() if value is not None}
    Path("eas.json").write_text(json.dumps(kept))
    return main(["deploy", "runs/kd-7/student", "--to", "eas", "--target-config", "eas.json", *more])


@pytest.mark.parametrize(("case", "changes"), [("one", {}), ("group", IN_A_GROUP)])
def test_what_is_sent(case: str, changes: dict[str, Any], student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy(SETTINGS | changes, "--dry-run") == 0
    shown = capsys.readouterr()
    if os.environ.get("EASYDISTILL_WRITE_GOLDEN"):
        golden("eas", case).write_text(shown.out, encoding="utf-8")
    assert shown.out == golden("eas", case).read_text(encoding="utf-8")
    assert "answers end with <|im_end|>" in shown.err and "copy runs/kd-7/student there" in shown.err


def test_a_student_that_would_write_on_is_refused(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its template ends turns with a token that vLLM would not stop at."""
    config = json.loads((student / "tokenizer_config.json").read_text())
    (student / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    for name in ("generation_config.json", "config.json"):
        found = json.loads((student / name).read_text())
        (student / name).write_text(json.dumps(found | {"eos_token_id": 0}))
    assert deploy(SETTINGS, "--dry-run") == 1
    told = capsys.readouterr().err
    assert "ends a turn with <|im_end|>" in told and "add 2 to eos_token_id in generation_config.json" in told
    found = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps(found | {"eos_token_id": [0, 2]}))
    assert deploy(SETTINGS, "--dry-run") == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"instance_type": None}, "either instance_type or resource_id"),
        ({"port": 8080}, "EAS listens at port 8080 itself"),
        ({"model": "runs/kd/student"}, "model"),
        ({"service": "Our-Student"}, "service"),
        ({"vllm": {"api-key": "x"}}, "vllm.api-key is set by another key, or by EAS"),
    ],
)
def test_settings_that_are_refused(
    changes: dict[str, Any], told: str, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(SETTINGS | changes, "--dry-run") == 2
    assert told in capsys.readouterr().err


def test_no_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert deploy(SETTINGS, "--dry-run") == 1
    assert "no model is here" in capsys.readouterr().err


def test_the_service_is_made(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("alibabacloud_eas20210701")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAIexampleexample")
    monkeypatch.setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret-of-the-key")
    with dlc_server() as server:
        assert deploy(SETTINGS | {"endpoint": server.url}) == 0
        (sent,) = server.of("CreateService")
        assert sent.body == json.loads(golden("eas", "one").read_text())
        assert "WorkspaceId=12345" in sent.path
        shown = capsys.readouterr().out
        assert '"base_url": "http://1.region.example/api/predict/kd_7/v1"' in shown and '"model": "kd-7"' in shown
        server.faults["CreateService"] = ["quota"]
        assert deploy(SETTINGS | {"endpoint": server.url}) == 1
        assert "QuotaExceeded" in capsys.readouterr().err


TOKEN = "YjE3ZGU0NzQwOTU1MzQ5"
PREFIX = "/api/predict/teacher"


@pytest.fixture
def gateway() -> Iterator[str]:
    """EAS's gateway before a server of OpenAI's protocol: it wants its token, and its path before `/v1`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] not in (TOKEN, f"Bearer {TOKEN}"):
                return self.say(401, b"Unauthorized")
            if self.path != f"{PREFIX}/v1/chat/completions":
                return self.say(404, b"no such path")
            text = f"answer to {body['messages'][-1]['content']}"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
            answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            return self.say(200, json.dumps(answer | {"choices": [choice], "usage": usage}).encode())

        def say(self, code: int, text: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}{PREFIX}"
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("token", "end", "code", "told"),
    [(TOKEN, "/v1", 0, ""), ("another", "/v1", 1, "401"), (TOKEN, "", 1, "404")],
    ids=["right", "wrong token", "without /v1"],
)
def test_an_endpoint_is_a_teacher(
    token: str, end: str, code: int, told: str, gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAS_TOKEN", token)
    job = {
        "job_type": "label",
        "output_dir": str(tmp_path / "run"),
        "dataset": {
            "instruction_path": str(write_prompts(tmp_path, ["a", "b"])),
            "labeled_path": str(tmp_path / "labeled.json"),
        },
        "inference": {"base_url": f"{gateway}{end}", "api_key": "${env:EAS_TOKEN}", "model": "m", "max_retries": 0},
    }
    found, out = run_here(write_config(tmp_path, job))
    assert found == code and told in out, out
    if not code:
        labels = json.loads((tmp_path / "labeled.json").read_text())
        assert [row["output"] for row in labels] == ["answer to a", "answer to b"]
    assert TOKEN not in out and not any(TOKEN in path.read_text() for path in (tmp_path / "run").rglob("*.json*"))
