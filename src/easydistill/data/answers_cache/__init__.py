"""A folder in which teachers' answers are kept by request key, so that no other run pays for them again.

`store.py` keeps and finds them, `claims.py` says who is asking for what right now, `exchange.py` moves them between
folders as one file. `in_use` is the folder of this process's run, if it has one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from easydistill.data.answers_cache.store import AnswersCache

ABOUT = "format.json"
"""The file that says what a folder is."""

_stack: list[AnswersCache] = []


def in_use() -> AnswersCache | None:
    """The cache of the run that this process is at, if it has one."""
    return _stack[-1] if _stack else None


@contextlib.contextmanager
def using(
    directory: str | Path | None, say: Callable[[str], None] = lambda text: None, *, make: bool = True
) -> Iterator[None]:
    """Let what is asked meanwhile be looked up in a folder, and kept there; None: in none.

    Args:
        make: whether to make a folder that is missing; if not, there is no cache then.

    Raises:
        ConfigError: the folder cannot be used.
    """
    path = None if directory is None else Path(directory).expanduser()
    if path is None or not (make or (path / ABOUT).is_file()):
        yield
        return
    # Here, because most commands use none.
    from easydistill.data.answers_cache.store import AnswersCache

    if _stack and _stack[-1].directory.resolve() == path.resolve():
        # One for a process: see `Claims`.
        yield
        return
    with AnswersCache(path, say) as cache:
        _stack.append(cache)
        try:
            yield
        finally:
            _stack.remove(cache)
