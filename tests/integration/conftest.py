"""Fixtures of several integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.fault_server import Running, running


@pytest.fixture(scope="module")
def fault_server() -> Iterator[Running]:
    """A server that misbehaves to order, one a module."""
    with running() as found:
        yield found


@pytest.fixture
def server(fault_server: Running) -> Running:
    """The same, as if nobody had asked it anything yet."""
    fault_server.reset()
    return fault_server
