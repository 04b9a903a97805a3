"""Where records of a journal go besides the local disk before they count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

Keeper = Callable[[Path], None]
_keepers: list[Keeper] = []


@contextlib.contextmanager
def kept_by(keeper: Keeper) -> Iterator[None]:
    """In this process, tell `keeper` the path of each journal that has a new record; it returns once that may count."""
    _keepers.append(keeper)
    try:
        yield
    finally:
        _keepers.remove(keeper)


def keep(path: Path) -> None:
    """A record was written to the end of a file, in this process."""
    for keeper in _keepers:
        keeper(path)
