"""Real vLLM: as a server behind the API teacher, and as an offline teacher that is held to a schema.

All of it is slow, for each part starts vLLM. In `make test`, servers that speak as vLLM's does stand for the server
(tests/support/fault_server.py, and FakeVllm in test_on_policy_kd.py), and test_vllm_scores.py runs the engine itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch
from tests.integration.test_on_policy_kd import TEXTS
from tests.integration.test_on_policy_kd import job as on_policy_job
from tests.support.jobs import api_job, run, write_config
from tests.support.served import free_port, serving

from easydistill.config.inference import ApiInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.methods.shared.rollouts import LocalScores, roll_out
from easydistill.models.loading import load_model, load_tokenizer
from easydistill.teachers.openai.scores import ServerScores
from easydistill.teachers.openai.teacher import OpenAITeacher

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
PROMPTS = [f"Name {n + 2} things that are {kind}." for n in range(4) for kind in ("red", "round", "warm")]
MODEL = "smollm"


@pytest.fixture(scope="module")
def vllm_server(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` on a free port; its base URL."""
    port = free_port()
    # What `vllm serve` runs; the command itself looks for a distribution named vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm)]
    command += ["--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--api-key", "sk-vllm-test-key"]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    with serving(command, port, log, environment, 240):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize("stream", [False, True])
def test_the_api_teacher_against_vllm_serve(vllm_server: str, stream: bool) -> None:
    config = ApiInferenceConfig(
        base_url=vllm_server, api_key="sk-vllm-test-key", stream=stream, max_new_tokens=24, temperature=0, seed=1
    )
    teacher = OpenAITeacher(config, Redactor())
    assert teacher.identity()["model"] == MODEL
    outcomes: list[Outcome] = []
    requests = [GenerationRequest(text, ({"role": "user", "content": text},)) for text in PROMPTS]
    teacher.generate(requests, lambda key: False, outcomes.extend, StopSignal())
    assert {outcome.key for outcome in outcomes} == set(PROMPTS)
    for outcome in outcomes:
        assert isinstance(outcome, Completion), outcome
        assert outcome.text
        assert outcome.finish_reason in {"stop", "length"}
        assert outcome.prompt_tokens > 10
        assert 1 <= outcome.completion_tokens <= 24


def test_the_whole_job_against_vllm_serve(vllm_server: str, tiny_model: Path, tmp_path: Path) -> None:
    job = api_job(tmp_path, vllm_server, tiny_model, PROMPTS, stream=True, timeout=60, api_key="${env:VLLM_KEY}")
    job["evaluation"] = {"heldout": 3, "max_new_tokens": 4}
    code, out = run(write_config(tmp_path, job), VLLM_KEY="sk-vllm-test-key")
    assert code == 0, out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stages"]["label"]["tokens"]["completion"] > len(PROMPTS)
    assert summary["metrics"]["after"]["cross_entropy"] < summary["metrics"]["before"]["cross_entropy"]


def test_a_wrong_key_is_told_as_such(vllm_server: str) -> None:
    config = ApiInferenceConfig(base_url=vllm_server, api_key="sk-wrong-key-1", max_retries=0)
    with pytest.raises(TeacherError, match=r"inference\.api_key"):
        OpenAITeacher(config, Redactor()).identity()


def test_it_scores_as_the_model_in_this_process(vllm_server: str, smollm: Path) -> None:
    own, tokenizer = load_model(str(smollm), torch.float32), load_tokenizer(str(smollm))
    frame = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    asked = [(text, tokenizer(frame.format(text))["input_ids"]) for text in TEXTS[:4]]
    written = roll_out(own, asked, 0, frozenset({2}), 24, 1.0, seed=1)
    sequences = [(item.ids, len(item.prompt)) for item in written]
    server = ServerScores(
        ApiInferenceConfig(base_url=vllm_server, api_key="sk-vllm-test-key"),
        Redactor(),
        lambda t: tokenizer.decode([t]),
    )
    here = [value for row in LocalScores(own, 2, 64 << 20).score(sequences, StopSignal()) for value in row]
    there = [value for row in server.score(sequences, StopSignal()) for value in row]
    gaps = [abs(one - other) for one, other in zip(here, there, strict=True)]
    print(f"{len(gaps)} tokens: mean difference {fmean(gaps):.4f}, largest {max(gaps):.4f} nats")
    # The server computes in bfloat16.
    assert fmean(gaps) < 0.05
    assert max(gaps) < 0.5
    with pytest.raises(TeacherError, match="max-model-len"):
        server.score([([5] * 1100, 1)], StopSignal())


def test_on_policy_distillation_against_vllm_serve(vllm_server: str, smollm: Path, tmp_path: Path) -> None:
    made = on_policy_job(
        tmp_path, smollm, {"from": str(smollm), "keep_layers": 28}, objective="sampled_reverse_kl", steps_per_rollout=2
    )
    made["inference"] = {"base_url": vllm_server, "api_key": "${env:VLLM_KEY}", "max_new_tokens": 8}
    made["training"] |= {"max_steps": 2, "num_train_epochs": 1}
    code, out = run(write_config(tmp_path, made), VLLM_KEY="sk-vllm-test-key", timeout=500)
    assert code == 0, out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["stages"]["train"]["metrics"]["steps"] == 2
    assert summary["metrics"]["after"]["kl"] is not None


def test_the_offline_teacher_is_held_to_a_schema(smollm: Path, tmp_path: Path) -> None:
    """A judge of 135M parameters gives no score of the right form by itself."""
    rows = [{"instruction": text, "output": "Tomatoes and bricks."} for text in PROMPTS]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    job = {
        "job_type": "instruction_scoring",
        "output_dir": str(tmp_path / "run"),
        "dataset": {"instruction_path": str(tmp_path / "rows.json")},
        "inference": {"backend": "vllm", "temperature": 0, "max_new_tokens": 64, "max_model_len": 1024},
        "models": {"teacher": str(smollm)},
        "synthesis": {"reply": "json"},
    }
    code, out = run(write_config(tmp_path, job))
    assert code == 0, out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["rows"]["accepted"] == len(PROMPTS)
