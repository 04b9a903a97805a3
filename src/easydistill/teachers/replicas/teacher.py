"""A teacher in several servers of vLLM's on this machine (`inference.replicas`), each on devices of its own.

The servers compute and nothing else: prompts are rendered and answers read here, as for vLLM's engine in this process
(`teachers/vllm.py`), and on GPUs each row has the same seed. So the answers' request keys are the same, and the number
of servers may change at any time.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import secrets
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from easydistill.config.inference import ApiInferenceConfig, VllmOptions
from easydistill.contracts.teacher import Completion, Failure, GenerationRequest, RecordOutcomes, row_seed
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.secrets import Redactor
from easydistill.errors import TeacherError
from easydistill.models.loading import choose_dtype, device, eos_ids, load_generation_config, load_tokenizer
from easydistill.models.reference import model_directory, resolve
from easydistill.models.vllm import server_environment
from easydistill.teachers.backends._local import template_identity
from easydistill.teachers.local import LocalChat
from easydistill.teachers.replicas.client import IDS, TokenClient
from easydistill.teachers.replicas.devices import device_parts, gpus
from easydistill.teachers.replicas.fleet import Fleet
from easydistill.teachers.replicas.server import Server

PROGRAM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
"""What `vllm serve` runs; the command itself looks for a distribution named vllm, which the CPU build is not."""
MODEL = "teacher"
KEY_VARIABLE = "VLLM_API_KEY"
SERVERS = "servers"
"""Folder of the servers' logs in a stage's directory."""
ANSWER_SECONDS = 30.0
"""Longest wait for a server to tell of its model."""
TIMEOUT = 3600.0
"""Seconds without a byte from a server; whether it lives is asked apart from that."""


class ReplicaTeacher:
    """Answers with vLLM servers that it starts.

    Args:
        reference: the teacher model.
        directory: of the stage, for the servers' logs.
        say: tells the user.
        template: chat template for a teacher without one of its own.
        date: of the run, for templates that write it.
    """

    def __init__(
        self,
        reference: str,
        inference: VllmOptions,
        directory: Path,
        say: Callable[[str], None],
        redactor: Redactor,
        template: str | None = None,
        date: datetime.date | None = None,
    ) -> None:
        self._reference, self._inference = reference, inference
        self._logs, self._say, self._redactor = directory / SERVERS, say, redactor
        self._template, self._date = template, date
        self._fleet: Fleet | None = None

    def identity(self) -> dict[str, Any]:
        weights = resolve(self._reference).identity()
        return {"backend": "vllm", **weights, **template_identity(self._inference)}

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        first = next((request.key for request in requests if not done(request.key)), None)
        if first is None or stop.requested:
            return
        try:
            if self._fleet is None and not self._start(first, stop):
                return
        except Exception:
            self.close()
            raise
        self._client.generate(requests, done, record, stop)

    def close(self) -> None:
        """End the servers."""
        if self._fleet is not None:
            self._fleet.close()
        self._fleet = None

    # --- the servers ------------------------------------------------------------------------------------------

    def _start(self, first: str, stop: StopSignal) -> bool:
        """Start the servers; False if the user asked to stop before one was ready.

        Args:
            first: key of the first request, on which draws on a CPU depend.

        Raises:
            ConfigError: there are fewer devices.
            TeacherError: no server came up.
        """
        config = self._inference
        assert config.replicas is not None
        self._on_cpu = device().type == "cpu"
        if self._on_cpu and config.temperature > 0:
            LOGGER.warning("vLLM on a CPU cannot seed single requests: a resumed run may draw other answers")
        parts = device_parts(config.replicas, config.tensor_parallel_size or None, on_cpu=self._on_cpu)
        directory = model_directory(resolve(self._reference))
        key = secrets.token_urlsafe(32)
        self._redactor.register(key)
        environment = server_environment(on_cpu=self._on_cpu)
        servers = [
            Server(
                lambda port, number=number: self._command(directory, port, number, first),  # type: ignore[misc]
                {**environment, **part, KEY_VARIABLE: key},
                self._logs / f"server-{number}.log",
            )
            for number, part in enumerate(parts)
        ]
        self._load_chat(directory)
        self._client = self._make_client(servers, key)
        members = list(zip(servers, self._client.endpoints, strict=True))
        self._fleet = Fleet(members, self._say, self._redactor.text, config.startup_timeout)
        self._say(f"  starting {len(servers)} vLLM servers of {self._reference}: {self._logs}")
        self._fleet.start()
        # One that is ready may die before it has told.
        while (ready := self._fleet.first_ready(stop)) is not None:
            if (longest := _longest(ready.url, key)) is not None:
                self._context = longest
                return True
        return False

    def _command(self, directory: str, port: int, number: int, first: str) -> list[str]:
        config, on_cpu = self._inference, self._on_cpu
        seed = (row_seed(config.seed, first) + number) % 2**32 if on_cpu else config.seed
        options: dict[str, Any] = {
            "model": directory,
            "served-model-name": MODEL,
            "host": "127.0.0.1",
            "port": port,
            "dtype": str(choose_dtype(config.dtype, device())).removeprefix("torch."),
            "seed": seed,
            # Not the model's own penalties and temperature.
            "generation-config": "vllm",
            "max-num-seqs": config.chunk_size,
            "tensor-parallel-size": _tensor_parallel(config, on_cpu=on_cpu),
            "max-model-len": config.max_model_len,
            "gpu-memory-utilization": None if on_cpu else config.gpu_memory_utilization,
        }
        flags = {
            "enforce-eager": config.enforce_eager if config.enforce_eager is not None else on_cpu,
            "enable-chunked-prefill": bool(config.enable_chunked_prefill),
            "no-enable-chunked-prefill": config.enable_chunked_prefill is False,
            "trust-remote-code": config.trust_remote_code,
            "disable-uvicorn-access-log": True,
        }
        given = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
        return [*PROGRAM, *given, *(f"--{name}" for name, on in flags.items() if on)]

    # --- requests ---------------------------------------------------------------------------------------------

    def _load_chat(self, directory: str) -> None:
        config = self._inference
        tokenizer = load_tokenizer(self._reference, trust_remote_code=config.trust_remote_code)
        self._ends = eos_ids(tokenizer, load_generation_config(directory))
        self._chat = LocalChat(tokenizer, self._ends, config, self._template, self._date)

    def _make_client(self, servers: Sequence[Server], key: str) -> TokenClient:
        config = self._inference
        asking = ApiInferenceConfig(
            base_url=[server.url for server in servers],
            api_key=key,  # type: ignore[arg-type]
            model=MODEL,
            max_new_tokens=config.max_new_tokens,
            max_concurrency=config.chunk_size * len(servers),
            adaptive_concurrency=False,
            timeout=TIMEOUT,
        )
        return TokenClient(asking, self._redactor, self._render, self._sampling, self._read, self._broken)

    def _broken(self) -> Any:
        return None if self._fleet is None else self._fleet.error

    def _render(self, request: GenerationRequest) -> list[int] | Failure:
        return self._chat.prompt(request, self._context)

    def _sampling(self, request: GenerationRequest, prompt: int) -> dict[str, Any]:
        """The parameters of `VllmTeacher`, as the API spells them."""
        config = self._inference
        temperature = config.temperature if request.temperature is None else request.temperature
        unseeded = self._on_cpu or temperature == 0
        found = {
            "temperature": temperature,
            "top_p": config.top_p or 1.0,
            "top_k": config.top_k or 0,
            "max_tokens": min(config.max_new_tokens, self._context - prompt),
            "stop_token_ids": sorted(self._ends),
            "seed": None if unseeded else row_seed(config.seed, request.key),
        }
        if request.schema is not None:
            found["structured_outputs"] = {"json": request.schema, "disable_any_whitespace": True}
        return {name: value for name, value in found.items() if value is not None}

    def _read(self, request: GenerationRequest, prompt: list[int], answer: Completion) -> Completion:
        return self._chat.completion(
            request,
            prompt,
            answer.extra[IDS],
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            model=self._reference,
            attempts=answer.attempts,
            seconds=answer.seconds,
        )


def _tensor_parallel(config: VllmOptions, *, on_cpu: bool) -> int:
    assert config.replicas is not None
    return config.tensor_parallel_size or (1 if on_cpu else gpus() // config.replicas)


def _longest(url: str, key: str) -> int | None:
    """Tokens that a server's model takes, prompt and answer together; None if it does not answer.

    Raises:
        TeacherError: it answers something else.
    """
    parts = urllib.parse.urlsplit(f"{url}/models")
    # Not through a proxy that the environment may name.
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", parts.path, headers={"Authorization": f"Bearer {key}"})
            content = connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return None
    try:
        return int(json.loads(content)["data"][0]["max_model_len"])
    except (ValueError, LookupError, TypeError) as error:
        raise TeacherError(f"{url}/models does not tell the model's length: {error}") from None
