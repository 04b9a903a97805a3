"""Two network namespaces that know each other over one cable only: two hosts, as far as the network is concerned."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

NETWORK = "10.213.7"
"""Of addresses that nothing else in a namespace has."""


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    address: str
    interface: str

    def command(self, *arguments: str) -> list[str]:
        """A command that runs there."""
        return [_ip(), "netns", "exec", self.name, *arguments]

    def received(self) -> int:
        """Bytes that have come over the cable."""
        path = f"/sys/class/net/{self.interface}/statistics/rx_bytes"
        return int(subprocess.run(self.command("cat", path), check=True, capture_output=True, text=True).stdout)

    def unplug(self) -> None:
        """Take the cable away, as when a machine loses its power: nobody is told."""
        _run("-n", self.name, "link", "set", self.interface, "down")


def _ip() -> str:
    return shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "ip"


def _run(*arguments: str) -> None:
    subprocess.run([_ip(), *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them.

    Raises:
        OSError: this machine does not let us; the text says why.
    """
    hosts = tuple(
        Host(f"easydistill-{os.getpid()}-{number}", f"{NETWORK}.{number + 1}", f"ed{os.getpid() % 100000}-{number}")
        for number in range(2)
    )
    try:
        try:
            for host in hosts:
                _run("netns", "add", host.name)
            first, second = hosts
            ends = ["netns", first.name, "type", "veth", "peer", "name", second.interface, "netns", second.name]
            _run("link", "add", first.interface, *ends)
            for host in hosts:
                _run("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
                for interface in (host.interface, "lo"):
                    _run("-n", host.name, "link", "set", interface, "up")
        except FileNotFoundError as error:
            raise OSError(f"there is no program `ip`: {error}") from None
        except subprocess.CalledProcessError as error:
            raise OSError(f"no network namespaces here: {error.stderr.strip()}") from None
        yield first, second
    finally:
        for host in hosts:
            with contextlib.suppress(OSError):
                subprocess.run([_ip(), "netns", "del", host.name], capture_output=True, check=False)
