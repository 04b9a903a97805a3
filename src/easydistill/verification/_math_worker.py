"""The process that compares two answers by mathematics: math-verify, apart from everything, with little memory.

It is started as a script (by `equality.py`) and reads requests from its standard input, one JSON a line:
`[reference, candidate]`. It writes one JSON a line: first `["ready"]` or `["missing", text]`, then for every request
`["equal" | "different" | "undecided", reason]`. Whoever started it kills it when it takes too long; should nobody be
left to do so, the kernel does, by the limit on CPU time that is set anew for each comparison. It ends when its input
ends. It imports nothing of easydistill, so it starts as fast as sympy does.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
from typing import IO, Any

CUT_OFF = 200


def main() -> None:
    """Serve until the input ends. Arguments: seconds a comparison may take, bytes of address space."""
    seconds, address_space = float(sys.argv[1]), int(sys.argv[2])
    # Libraries that print must not write into the protocol.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a descriptor is wanted, and nothing else
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
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
            # What is left of the heap is not to be trusted with the next comparison.
            _write(replies, "undecided", "out of memory")
            return
        except RecursionError:
            outcome, reason = "undecided", "nested too deeply"
        except Exception as error:  # sympy raises anything; each is one comparison that failed, and says so
            outcome, reason = "undecided", f"{type(error).__name__}: {str(error)[:CUT_OFF]}"
        _write(replies, outcome, reason)


def compare(math_verify: Any, reference: str, candidate: str) -> tuple[str, str]:
    """Compare two LaTeX or plain expressions.

    Each is read as one expression: math-verify's search for something that parses, anywhere in the text, is off, since
    it would find the 6 of "between 5 and 6". Its own time limits are off too, being signals.
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
