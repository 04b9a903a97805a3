"""`easydistill serve`: which model and backend are meant, and the server's life."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
import tempfile
from pathlib import Path

from easydistill.engine.checks import in_one, needs_extra
from easydistill.errors import ConfigError, ConfigIssue
from easydistill.models.checks import file_issues, model_issues
from easydistill.serving.settings import ServeSettings

STUDENT = "student"
"""Of a run directory."""


def serve(settings: ServeSettings) -> None:
    """Serve a model until the process is asked to end (SIGINT, SIGTERM); what is being answered then is finished.

    Raises:
        ConfigError: an argument does not fit.
        ModelError: the model cannot be loaded, or has no chat template.
    """
    reference = served_model(settings.model)
    backend = _backend(settings)
    issues = [
        *needs_extra("train", "torch", "transformers"),
        *(needs_extra("vllm", "vllm") if backend == "vllm" else needs_extra("serve", "starlette", "uvicorn")),
        *model_issues("model", reference),
        *file_issues("model", reference, weights=True),
        *_argument_issues(settings, backend),
    ]
    if issues:
        raise ConfigError(in_one(issues))
    key = None if settings.api_key_env is None else os.environ[settings.api_key_env]
    if key is None and not _is_local(settings.host):
        print(f"note: whoever reaches {settings.host} may ask; --api-key-env NAME asks for a key", flush=True)
    with _bound(settings) as place:
        if backend == "vllm":
            from easydistill.serving.vllm import run_server, server_command

            command = server_command(settings, reference)
            place.close()
            print(f"starting vLLM for {settings.name} at {_address(settings.host, settings.port)}", flush=True)
            run_server(command, key)
        _serve_here(settings, reference, key, place)


def served_model(reference: str) -> str:
    """The model that a reference means: of a run directory, its student."""
    path = Path(reference).expanduser()
    if path.is_dir() and not (path / "config.json").is_file() and (path / STUDENT / "config.json").is_file():
        return str(path / STUDENT)
    return reference


def _backend(settings: ServeSettings) -> str:
    if settings.backend != "auto":
        return settings.backend
    return "transformers" if importlib.util.find_spec("vllm") is None else "vllm"


def _argument_issues(settings: ServeSettings, backend: str) -> list[ConfigIssue]:
    found: list[ConfigIssue] = []
    where = "command line"
    if settings.template is not None and not Path(settings.template).is_file():
        found.append(ConfigIssue(where, "--template", f"{settings.template}: no such file", "name a Jinja file"))
    name = settings.api_key_env
    if name is not None and not os.environ.get(name):
        problem = f"the environment has no variable {name}, or it is empty"
        found.append(ConfigIssue(where, "--api-key-env", problem, f"export {name}=… first"))
    if settings.vllm_arguments and backend != "vllm":
        problem = f"{settings.vllm_arguments[0]} is for vLLM, and {backend} serves"
        found.append(ConfigIssue(where, "--", problem, "add --backend vllm, or leave it out"))
    if settings.port == 0 and backend == "vllm":
        found.append(ConfigIssue(where, "--port", "vLLM would not say which port it has found", "name one"))
    return found


def _bound(settings: ServeSettings) -> socket.socket:
    """A socket at the address, not listening yet: what is wrong with it is told before the model is loaded.

    Raises:
        ConfigError: it is taken, or not of this machine.
    """
    place: socket.socket | None = None
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, socket.SOCK_STREAM)
        # As servers do: connections of an ended one that linger do not matter.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
    except (OSError, OverflowError) as error:
        if place is not None:
            place.close()
        problem = f"{_address(settings.host, settings.port)} cannot be used: {error}"
        raise ConfigError(ConfigIssue("command line", "--port", problem, "choose another --port or --host")) from None
    return place


def _serve_here(settings: ServeSettings, reference: str, key: str | None, place: socket.socket) -> None:
    import uvicorn

    from easydistill.serving.app import Service
    from easydistill.serving.loading import load

    with tempfile.TemporaryDirectory(prefix="easydistill-serve-") as folder:
        loaded = load(settings, reference, Path(folder) / "images")
        service = Service(loaded.engine, loaded.chats, settings.name, key)
        config = uvicorn.Config(
            service.app(), log_config=None, access_log=False, server_header=False, lifespan="on", ws="none"
        )
        server = uvicorn.Server(config)
        where = _address(settings.host, place.getsockname()[1])
        # Whoever has read this line may connect.
        place.listen()
        print(f"serving {settings.name} at {where} (transformers, {loaded.described})", flush=True)
        # uvicorn raises the signals that ended it again when all is done: then they have been obeyed.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run(sockets=[place])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            loaded.engine.close()


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
