"""The process that matches texts against a pattern: a script, started by `format.py`, that can be killed at any time.

It reads one JSON object from its standard input, `{"pattern", "seconds", "texts"}`. It writes `ready`, then for each
text a line of JSON: true or false, or null if the match exceeded `seconds` or the memory. `re` checks for signals while
it matches, and this is a main thread, so a timer ends one match and the next one follows. If that fails, the kernel
ends the process at its limit on CPU time, even if the parent process is gone.
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
    """The time for one match is up."""


def main() -> None:
    """Serve one request and end."""
    request = json.load(sys.stdin)
    seconds, texts = request["seconds"], request["texts"]
    limit = int(seconds * len(texts)) + SLACK_SECONDS
    for kind, value in (
        (resource.RLIMIT_CPU, limit),
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    pattern = re.compile(request["pattern"], re.DOTALL)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, on_alarm)
    print("ready", flush=True)
    for text in texts:
        matches: bool | None = None
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            matches = pattern.fullmatch(text) is not None
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (_TooLong, MemoryError, RecursionError):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(matches), flush=True)


if __name__ == "__main__":
    main()
