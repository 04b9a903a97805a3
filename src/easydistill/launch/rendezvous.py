"""How the commands that share a run find the first: at an address they all know, or through torchrun's own store."""

from __future__ import annotations

import datetime
import socket
from typing import Any

from easydistill.launch.place import Address, Place

LOOK = 20
"""Seconds that one look into torchrun's store takes at most."""


def listen(place: Place) -> socket.socket:
    """Listen where the others look for the first command.

    Raises:
        OSError: the port is taken.
    """
    port = place.address[1] if place.address is not None else 0
    if socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port))
    if place.address is None and place.store is not None:
        host, at = place.store
        with socket.create_connection(place.store, timeout=LOOK) as connection:
            mine = connection.getsockname()[0]
        # On the store's own machine the loopback may lead to it; the others know that machine by the store's name.
        mine = host if mine.startswith("127.") or mine == "::1" else mine
        _store(host, at).set(place.store_key, f"{mine} {listener.getsockname()[1]}")
    return listener


def find(place: Place) -> Address:
    """Where the first command listens.

    Raises:
        OSError: it has not told yet.
    """
    if place.address is not None:
        return place.address
    assert place.store is not None, "a launcher gives an address or a store"
    try:
        host, port = _store(*place.store).get(place.store_key).decode().split()
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return host, int(port)


def _store(host: str, port: int) -> Any:
    import torch.distributed

    timeout = datetime.timedelta(seconds=LOOK)
    return torch.distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, wait_for_workers=False, timeout=timeout
    )
