"""A folder in which teachers' answers are kept by request key, so that no other run pays for them again.

`store.py` keeps and finds them, `claims.py` says who is asking for what right now, `exchange.py` moves them between
folders as one file. `in_use` is the folder of this process's run, if it has one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from easydistill.data.answers_cache.store import AnswersCache

__all__ = ["AnswersCache", "in_use", "using"]

_stack: list[AnswersCache] = []


def in_use() -> AnswersCache | None:
    """The cache of the run that this process is at, if it has one."""
    return _stack[-1] if _stack else None


@contextlib.contextmanager
def using(directory: str | Path | None, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Let what is asked meanwhile be looked up in a folder, and kept there; None: in none.

    Raises:
        ConfigError: the folder cannot be used.
    """
    if directory is None:
        yield
        return
    path = Path(directory).expanduser()
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
