"""llama.cpp itself, where xllamacpp is installed (it has a build for CPUs)."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def llama_cpp(path: Path) -> Iterator[Any]:
    """(path, body) → the reply of llama.cpp's server with a file loaded."""
    library = pytest.importorskip("xllamacpp")
    settings = library.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.port, settings.warmup = 1024, 1, 0, False
    settings.cpuparams.n_threads = 1
    server = library.Server(settings)

    address = server.listening_address

    def ask(where: str, body: dict[str, Any]) -> Any:
        sent = json.dumps(body).encode()
        request = urllib.request.Request(address + where, sent, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    # The server ends when nothing refers to it any more.
    yield ask
