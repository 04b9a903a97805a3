"""Which interface has an address."""

from __future__ import annotations

import psutil
import pytest

from easydistill.launch.network import LOOPBACK, interface_of, interface_variables


def test_the_loopback() -> None:
    for address in ("127.0.0.1", "127.0.1.1", "::1"):
        assert interface_of(address) == LOOPBACK
    # NCCL never takes it of its own accord, so it is not told to.
    assert interface_variables("127.0.0.1") == {"GLOO_SOCKET_IFNAME": LOOPBACK}


def test_every_address_of_this_machine() -> None:
    found = {
        known.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for known in addresses
        if known.family.name in ("AF_INET", "AF_INET6") and name != LOOPBACK
    }
    if not found:
        pytest.skip("this machine has no network")
    for address, name in found.items():
        assert interface_of(address) == name
        assert interface_variables(address) == {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}


def test_another_machine_s_address() -> None:
    assert interface_of("203.0.113.7") is None
    assert interface_variables("203.0.113.7") == {}
