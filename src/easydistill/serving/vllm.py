"""vLLM's own server for a model: the command that starts it in place of this process.

Its answers end at the tokenizer's end token and at those of the model's generation config. The temperature and the
penalties in that config are left out, as for a teacher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from easydistill.data.chat import ChatRenderer
from easydistill.errors import DataError, ModelError
from easydistill.models.loading import choose_dtype, device, eos_ids, load_generation_config, load_tokenizer
from easydistill.models.reference import model_directory, resolve
from easydistill.models.vllm import server_environment, tensor_parallel_size
from easydistill.serving.settings import ServeSettings
from easydistill.teachers.parsing.forms import form_of, shows_tools
from easydistill.teachers.parsing.harmony import is_harmony

PROGRAM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
"""What `vllm serve` runs; the command itself looks for a distribution named vllm, which the CPU build is not."""
KEY_VARIABLE = "VLLM_API_KEY"
FINISH_SECONDS = 600
"""What requests under way get when the server is asked to end."""
_TOOL_PARSERS = {
    "hermes": "hermes",
    "llama": "llama3_json",
    "mistral": "mistral",
    "qwen_coder": "qwen3_coder",
    "glm": "glm45",
    "jamba": "jamba",
    "internlm": "internlm",
    "lfm2": "lfm2",
}
"""Our names of forms of calls → vLLM's parsers of them."""
_THINK = "<think>"


def server_command(settings: ServeSettings, reference: str) -> list[str]:
    """The program that serves a model.

    Raises:
        ModelError: it has no chat template, or one that cannot be read.
    """
    on_cpu = device().type == "cpu"
    directory = model_directory(resolve(reference))
    options: dict[str, Any] = {
        "model": directory,
        "served-model-name": settings.name,
        "host": settings.host,
        "port": settings.port,
        "dtype": str(choose_dtype(settings.dtype, device())).removeprefix("torch."),
        "generation-config": "vllm",
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_concurrency,
        "chat-template": settings.template,
        "tensor-parallel-size": tensor_parallel_size(on_cpu=on_cpu),
        "shutdown-timeout": FINISH_SECONDS,
        **_parsers(settings, reference, directory),
    }
    flags = {
        "enable-auto-tool-choice": options.get("tool-call-parser") is not None,
        # Compiling costs more there than it gains.
        "enforce-eager": on_cpu,
        "trust-remote-code": settings.trust_remote_code,
        "disable-uvicorn-access-log": True,
    }
    own = settings.vllm_arguments
    given = {name: value for name, value in options.items() if value is not None and not _is_given(name, own)}
    command = [*PROGRAM, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]
    return [*command, *(f"--{name}" for name, on in flags.items() if on and not _is_given(name, own)), *own]


def _is_given(name: str, arguments: Sequence[str]) -> bool:
    spellings = {f"--{name}", f"--no-{name}", f"--{name}".replace("-", "_").replace("__", "--", 1)}
    return any(argument.partition("=")[0] in spellings for argument in arguments)


def _parsers(settings: ServeSettings, reference: str, directory: str) -> dict[str, str]:
    """The parsers that read what a model with this template writes."""
    tokenizer = load_tokenizer(reference, trust_remote_code=settings.trust_remote_code)
    try:
        ends = eos_ids(tokenizer, load_generation_config(directory))
        renderer = ChatRenderer.from_file(tokenizer, ends, settings.template)
    except DataError as error:
        problem = str(error).partition("\n")[0]
        raise ModelError(f"{reference}: {problem}\n    → give a chat template: --template FILE") from None
    source = renderer.template or ""
    if is_harmony(source):
        return {"tool-call-parser": "openai", "reasoning-parser": "openai_gptoss"}
    found: dict[str, str] = {}
    form = form_of(renderer) if shows_tools(renderer) else None
    if form is not None and form.name in _TOOL_PARSERS:
        found["tool-call-parser"] = _TOOL_PARSERS[form.name]
    if _THINK in source:
        found["reasoning-parser"] = "qwen3"
    return found


def run_server(command: Sequence[str], key: str | None) -> None:
    """Become the server: signals are its own, and its exit code this command's. Does not return."""
    environment = {**os.environ, **server_environment(on_cpu=device().type == "cpu")}
    if key is not None:
        environment[KEY_VARIABLE] = key
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), environment)
