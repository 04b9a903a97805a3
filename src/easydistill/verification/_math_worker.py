"""The process that compares two answers by algebra: math-verify, isolated from the caller and with little memory.

`equality.py` starts it as a script. It reads requests from its standard input, one line of JSON each: `[reference,
candidate]`. It writes one line of JSON for each: first `["ready"]` or `["missing", text]`, then for every request
`["equal" | "different" | "undecided", reason]`. It ends when its input ends. The parent process kills it if a
comparison takes too long; if the parent is gone, the kernel does, because the limit on CPU time is renewed for each
comparison. It imports nothing of easydistill, so it starts as fast as sympy does.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
from typing import IO, Any

MAX_REASON = 200
"""Characters of an error message in a reason."""


def main() -> None:
    """Answer requests until the input ends. Arguments: maximum seconds of a comparison, bytes of address space."""
    seconds, address_space = float(sys.argv[1]), int(sys.argv[2])
    # Keep the output of libraries that print out of the protocol.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as null:  # noqa: PTH123 - only its descriptor is needed
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    logging.disable(logging.CRITICAL)
    _limit(resource.RLIMIT_AS, address_space)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        import math_verify
    except ImportError as error:
        _write(replies, "missing", str(error))
        return
    _write(replies, "ready")
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + 2 * seconds) + 1)
        try:
            outcome, reason = compare(math_verify, *json.loads(line))
        except MemoryError:
            # After this the heap cannot be relied on for another comparison.
            _write(replies, "undecided", "out of memory")
            return
        except RecursionError:
            outcome, reason = "undecided", "nested too deeply"
        except Exception as error:  # sympy may raise anything; it fails this comparison only, with the reason
            outcome, reason = "undecided", f"{type(error).__name__}: {str(error)[:MAX_REASON]}"
        _write(replies, outcome, reason)


def compare(math_verify: Any, reference: str, candidate: str) -> tuple[str, str]:
    """Compare two LaTeX or plain expressions.

    Each is read as one expression. math-verify's search for anything in the text that parses is off, because it would
    find the 6 of "between 5 and 6"; so are its own time limits, because they use signals.
    """
    config = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)

    def read(text: str) -> list[Any]:
        parsed: list[Any] = math_verify.parse(
            f"\\boxed{{{text}}}",
            extraction_config=config,
            extraction_mode="first_match",
            parsing_timeout=None,
            raise_on_error=True,
        )
        return parsed

    gold, answer = read(reference), read(candidate)
    if math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True):
        return "equal", ""
    for name, parsed in (("reference", gold), ("candidate", answer)):
        if all(isinstance(item, str) for item in parsed):
            return "undecided", f"the {name} cannot be read as mathematics"
    return "different", ""


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _write(replies: IO[str], *reply: str) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
