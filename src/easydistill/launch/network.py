"""Which network interface has an address, and which variables tell it to gloo and NCCL."""

from __future__ import annotations

import ipaddress
import sys

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


def interface_of(address: str) -> str | None:
    """The interface with an address of this machine; None if none has it."""
    import psutil

    if ipaddress.ip_address(address).is_loopback:
        return LOOPBACK
    for name, addresses in psutil.net_if_addrs().items():
        # A link-local address of version 6 has its interface behind it.
        if any(known.address.partition("%")[0] == address for known in addresses):
            return str(name)
    return None


def interface_variables(address: str) -> dict[str, str]:
    """Variables that have gloo and NCCL use the interface of an address, by which the other machines reach this one.

    Left to itself, gloo takes that of the machine's own name, which is the loopback on many.
    """
    name = interface_of(address)
    # NCCL ignores the loopback of its own accord, and "=" has it take no interface whose name begins alike.
    nccl = {} if name in (None, LOOPBACK) else {"NCCL_SOCKET_IFNAME": f"={name}"}
    return {**({} if name is None else {"GLOO_SOCKET_IFNAME": name}), **nccl}
