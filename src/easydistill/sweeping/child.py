"""One variant of a sweep: `python -m easydistill.sweeping.child`. Reads what to run from its input, and runs it.

A process for each: the memory that one has taken is free for the next one, whatever library held it, and what kills
one does not kill the others. The input stays open as long as the sweep lives; once that is gone, so is this process,
which may end at any moment and be resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

from easydistill.errors import EXIT_FAILED, EasyDistillError, Interrupted


def main() -> int:
    """Entry point; returns the exit code of the run."""
    asked: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    return _run(asked["config"], asked["overrides"], quiet=asked["quiet"], replace=asked["replace"])


def _end_with_the_sweep() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def _run(config: Any, overrides: list[str], *, quiet: bool, replace: bool) -> int:
    from easydistill import api

    try:
        result = api.run(config, overrides, quiet=quiet, replace=replace)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except EasyDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        print(api.explain_unexpected(error, config, overrides), file=sys.stderr)
        return EXIT_FAILED
    if not quiet:
        print("\n".join(api.summary_lines(result)), flush=True)
    return result.exit_code


if __name__ == "__main__":
    # Not through the interpreter's end, where the thread above would hold the input.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
