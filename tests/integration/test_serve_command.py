"""`easydistill serve` as a command: real weights through transformers and through vLLM, and its end by Ctrl-C."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.conftest import TEACHER
from tests.support.served import free_port

from easydistill.config.inference import ApiInferenceConfig, TransformersInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.teachers.openai.teacher import OpenAITeacher
from easydistill.teachers.transformers import TransformersTeacher

QUESTIONS = ["What is the capital of France?", "Name three colours.", "What is 2 + 2?", "Who wrote Hamlet?"]
KEY = "SERVED_KEY"


@contextlib.contextmanager
def command(log: Path, *arguments: str, seconds: float = 240) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command under way: its process, and the root of its API."""
    port = free_port()
    line = [sys.executable, "-m", "easydistill", "serve", *arguments, "--port", str(port), "--api-key-env", KEY]
    environment = {**os.environ, KEY: "s3cret", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(line, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        yield process, f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="s3cret", max_retries=0, timeout=240)


def teacher_says(question: str, tokens: int) -> Completion:
    config = TransformersInferenceConfig(backend="transformers", temperature=0.0, max_new_tokens=tokens)
    found: list[Any] = []
    request = GenerationRequest("k", ({"role": "user", "content": question},))
    TransformersTeacher(TEACHER, config).generate([request], lambda key: False, found.extend, StopSignal())
    assert isinstance(found[0], Completion)
    return found[0]


def ask(api: openai.OpenAI, question: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return api.chat.completions.create(model="smol", messages=messages, temperature=0, **options)


@pytest.mark.slow
def test_real_weights_through_transformers(smollm: Path, tmp_path: Path) -> None:
    said = teacher_says(QUESTIONS[0], 40)
    arguments = (TEACHER, "--backend", "transformers", "--served-name", "smol")
    with command(tmp_path / "log", *arguments) as (process, url), client(url) as api:
        found = ask(api, QUESTIONS[0], max_tokens=40)
        assert found.choices[0].message.content == said.text and "Paris" in said.text
        assert found.choices[0].finish_reason == said.finish_reason == "stop"
        assert found.usage.completion_tokens == said.completion_tokens
        # As the teacher of another job.
        inference = ApiInferenceConfig(base_url=url, api_key="s3cret", max_new_tokens=40, temperature=0.0)  # type: ignore[arg-type]
        requests = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in QUESTIONS]
        labels: list[Any] = []
        OpenAITeacher(inference, Redactor()).generate(requests, lambda key: False, labels.extend, StopSignal())
        assert {label.key for label in labels if isinstance(label, Completion) and label.text} == set(QUESTIONS)
        # Asked to end, it finishes what it has.
        stream = ask(api, "Write a long story.", max_tokens=60, stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        assert list(stream)[-1].choices[0].finish_reason in ("length", "stop")
        assert process.wait(60) == 0
    printed = (tmp_path / "log").read_text()
    assert f"serving smol at {url} (transformers, cpu" in printed and "Traceback" not in printed
    assert "s3cret" not in printed


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_real_weights_through_vllm(smollm: Path, tmp_path: Path) -> None:
    arguments = (TEACHER, "--served-name", "smol", "--dtype", "float32", "--max-model-len", "512")
    with (
        command(tmp_path / "log", *arguments, "--max-concurrency", "8", seconds=900) as (process, url),
        client(url) as api,
    ):
        assert [model.id for model in api.models.list()] == ["smol"]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="other", max_retries=0).models.list()
        found = ask(api, QUESTIONS[0], max_tokens=40)
        assert "Paris" in found.choices[0].message.content and found.choices[0].finish_reason == "stop"
        told = list(ask(api, QUESTIONS[0], max_tokens=40, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices) == (
            found.choices[0].message.content
        )
        assert told[-1].usage.completion_tokens == found.usage.completion_tokens
        long: list[Any] = []
        asking = threading.Thread(target=lambda: long.append(ask(api, "Write a long story.", max_tokens=60)))
        asking.start()
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        asking.join()
        assert long and long[0].choices[0].message.content
        process.wait(120)
    assert "s3cret" not in (tmp_path / "log").read_text()
