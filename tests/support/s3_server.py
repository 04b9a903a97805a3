"""An S3 server in a process of its own (moto's), and a way to it that loses, cuts, refuses and delays connections."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

FAULTS = ("drop", "refuse", "cut", "slow")
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BUCKET = "bucket"


def _moto(folder: Path) -> str:
    """An interpreter that has moto's server: this one, or that of an environment made for it."""
    if importlib.util.find_spec("moto") and importlib.util.find_spec("flask"):
        return sys.executable
    named = os.environ.get("EASYDISTILL_MOTO_PYTHON")
    if named:
        return named
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "moto[s3,server]"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"moto cannot be installed: {done.stderr[-300:]}")
    return python


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """The server's URL; it has an empty bucket."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [_moto(folder / "moto"), "-m", "moto.server", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                with contextlib.suppress(OSError):
                    request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
                    urllib.request.urlopen(request, timeout=5).close()
                    break
                time.sleep(0.1)
            else:
                raise AssertionError((folder / "moto.log").read_text())
            yield url
        finally:
            process.kill()


class FaultyWay:
    """Passes connections on to a server; some of them meet a fault, which is drawn from a seed.

    Args:
        share: of connections that meet one. A connection is closed after some bytes, so there are many.
    """

    def __init__(self, port: int, share: float, seed: int) -> None:
        self._port, self.share, self._random = port, share, random.Random(seed)
        self.met: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._pass, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0.05))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._random.choice(FAULTS) if self._random.random() < self.share else "none"
        self.met[fault] += 1
        with contextlib.suppress(ConnectionError, asyncio.CancelledError), contextlib.closing(writer):
            if fault == "drop":
                return
            if fault == "refuse":
                await reader.read(1 << 16)
                writer.write(_BUSY)
                await writer.drain()
                return
            if fault == "slow":
                await asyncio.sleep(self._random.uniform(0.3, 1.5))
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            limit = self._random.randrange(200, 20_000) if fault == "cut" else 1 << 40
            with contextlib.closing(back):
                await asyncio.wait(
                    [
                        asyncio.create_task(_requests(reader, writer, back)),
                        asyncio.create_task(_copy(there, writer, limit)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )


async def _requests(reader: asyncio.StreamReader, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
    """Pass on whole requests only: moto keeps the beginning of a cut one as the object, which no store does."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if expects := re.search(rb"(?i)\r\nexpect: *100-continue", head):
                # The client sends the body only once it is told to.
                head = head[: expects.start()] + head[expects.end() :]
                client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await client.drain()
            found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            server.write(head + await reader.readexactly(int(found[1]) if found else 0))
            await server.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    with contextlib.suppress(ConnectionError):
        while limit > 0 and (data := await reader.read(1 << 14)):
            writer.write(data[:limit])
            limit -= len(data)
            await writer.drain()
