"""The process that matches texts against a pattern: a script of its own, started by `format.py`, free to be killed.

It reads one JSON object from its standard input, `{"pattern", "seconds", "texts"}`. It writes `ready`, then one JSON
value a text, a line each: true or false, or null where the match took longer than `seconds`, or all memory. `re` looks
at signals while it matches, and this is a main thread, so a timer ends one match and the next goes on; should that
fail, the kernel ends the process by its limit on CPU time, whether or not anybody is left to do so.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from types import FrameType

SLACK_SECONDS = 5
ADDRESS_SPACE = 1 << 30
"""Bytes."""


class _TooLong(Exception):
    """The timer rang."""


def main() -> None:
    """Serve one request and end."""
    request = json.load(sys.stdin)
    seconds, texts = request["seconds"], request["texts"]
    limit = int(seconds * len(texts)) + SLACK_SECONDS
    for kind, most in (
        (resource.RLIMIT_CPU, limit),
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    pattern = re.compile(request["pattern"], re.DOTALL)

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, ring)
    print("ready", flush=True)
    for text in texts:
        found: bool | None = None
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            found = pattern.fullmatch(text) is not None
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (_TooLong, MemoryError, RecursionError):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
