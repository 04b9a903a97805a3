"""Messages between the commands that share a run: JSON over TCP, between those who know the run's key.

The key is a file of the run directory, so who proves that it knows it sees the run directory too. Both sides prove it
with an HMAC (SHA-256) over two numbers used once, and every message carries an HMAC over its place in the order. What
is sent is not encrypted, and holds no secrets (`tasks.py`). Nothing that is received is executed or unpickled.

The system's keep-alive probes tell within `SILENCE` seconds that a machine is gone; that a process is gone is told by
the end of its connection, at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from easydistill.engine.run_directory import package_versions
from easydistill.errors import EasyDistillError

KEY = "nodes.key"
VERSION = package_versions(("easydistill-toolkit",)).get("easydistill-toolkit", "")
"""All commands of a run must be of one version."""
SILENCE = 25
"""Seconds after which a machine that answers no probe is gone."""
GREETING = 10.0
"""Seconds for the exchange of proofs."""
_HEAD = struct.Struct("!I32s")
_MOST = 64 << 20
"""Bytes of a message."""
_MOST_BEFORE = 4096
"""Bytes of a message of somebody who has proved nothing yet."""
_PROBE = 5


class Refused(EasyDistillError, ConnectionError):
    """The other side does not know this run's key."""


class Unseen(Refused):
    """This side does not see the run's key, or another one."""


def write_key(run_directory: Path) -> bytes:
    """Make a new key for a run; the file is readable to its owner only."""
    path = run_directory / KEY
    path.unlink(missing_ok=True)
    key = secrets.token_hex(32).encode()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    return key


def read_key(run_directory: Path) -> bytes:
    """The run's key; empty if it is not seen from here."""
    try:
        return (run_directory / KEY).read_bytes()
    except OSError:
        return b""


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"\0".join(parts), hashlib.sha256).digest()


class Link:
    """A connection to another command of the run."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._key = b""
        self._ours, self._theirs = b"", b""
        self._sent = self._received = 0
        self._sending = threading.Lock()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _PROBE),
            ("TCP_KEEPINTVL", _PROBE),
            ("TCP_KEEPCNT", SILENCE // _PROBE - 1),
            # While something is sent that nobody acknowledges, there are no probes.
            ("TCP_USER_TIMEOUT", SILENCE * 1000),
        ):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def here(self) -> str:
        """The address of this machine by which the other side reaches it."""
        return _plain(self._connection.getsockname()[0])

    @property
    def there(self) -> str:
        """The other side's address."""
        return _plain(self._connection.getpeername()[0])

    def fileno(self) -> int:
        """For `select`."""
        return self._connection.fileno()

    def send(self, **message: Any) -> None:
        """Send one message.

        Raises:
            OSError: the other side is gone.
        """
        body = json.dumps(message).encode()
        with self._sending:
            mac = _mac(self._key, self._ours, str(self._sent).encode(), body)
            self._sent += 1
            self._connection.sendall(_HEAD.pack(len(body), mac) + body)

    def receive(self) -> dict[str, Any]:
        """Receive one message.

        Raises:
            EOFError: the other side is gone.
            Refused: the message is not the other side's.
        """
        try:
            length, mac = _HEAD.unpack(self._exactly(_HEAD.size))
            if length > (_MOST if self._key else _MOST_BEFORE):
                raise Refused(f"a message of {length} bytes from {self.there}")
            body = self._exactly(length)
        except OSError as error:
            if isinstance(error, Refused):
                raise
            raise EOFError(str(error)) from None
        wanted = _mac(self._key, self._theirs, str(self._received).encode(), body)
        self._received += 1
        if not hmac.compare_digest(mac, wanted):
            raise Refused(f"a message from {self.there} that is not of this run")
        message: dict[str, Any] = json.loads(body)
        return message

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def greet(self, key: bytes, about: dict[str, Any]) -> None:
        """Prove to the command that leads that this one knows the key, and have it prove the same.

        Args:
            key: empty if it is not seen from here.
            about: what the other side is told.

        Raises:
            Unseen: the key here is not the other side's.
            EOFError: the other side is gone.
        """
        self._connection.settimeout(GREETING)
        first, second = self.receive()["once"].encode(), secrets.token_hex(16).encode()
        told = json.dumps(about)
        proof = _mac(key, b"helper", first, second, told.encode()).hex() if key else ""
        self.send(once=second.decode(), about=told, proof=proof)
        answer = self.receive()
        proved = hmac.compare_digest(answer["proof"], _mac(key, b"leader", first, second).hex())
        if not key or not proved:
            raise Unseen
        self._agree(key, first, second, b"helper", b"leader")

    def welcome(self, key: bytes) -> dict[str, Any]:
        """The other side of `greet`; what the command that has connected says of itself.

        Raises:
            Refused: it does not know the key.
            EOFError: it is gone.
        """
        self._connection.settimeout(GREETING)
        first = secrets.token_hex(16).encode()
        self.send(once=first.decode())
        answer = self.receive()
        second, told = answer["once"].encode(), answer["about"]
        proved = hmac.compare_digest(answer["proof"], _mac(key, b"helper", first, second, told.encode()).hex())
        self.send(proof=_mac(key, b"leader", first, second).hex() if proved else "")
        if not proved:
            raise Refused(f"{self.there} does not see this run directory")
        self._agree(key, first, second, b"leader", b"helper")
        about: dict[str, Any] = json.loads(told)
        return about

    def _agree(self, key: bytes, first: bytes, second: bytes, ours: bytes, theirs: bytes) -> None:
        self._key, self._ours, self._theirs = _mac(key, b"session", first, second), ours, theirs
        self._sent = self._received = 0
        self._connection.settimeout(None)

    def close(self) -> None:
        """End the connection; a thread that receives from it finds that it is gone."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _plain(address: str) -> str:
    """An address of version 4, where a socket of version 6 has taken it."""
    return address.removeprefix("::ffff:")
