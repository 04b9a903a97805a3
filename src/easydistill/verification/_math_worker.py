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
import re
import resource
import sys
from typing import IO, Any

MAX_REASON = 200
"""Characters of an error message in a reason."""
PLACES = 6
"""Decimals are compared after rounding to this many places."""
SMALL = 1e-3
"""Below this a decimal is compared with the relative precision that `PLACES` have here."""
EXACT = 1e-30
"""Exact numbers, such as roots and powers of e, are equal if they differ by no more than this share of themselves."""
_RELATION = re.compile(r"[=<>≤≥≠∈]|\\(?:l|g|n)(?:e|t|eq)(?![A-Za-z])|\\in(?![A-Za-z])|\\(?:leq|geq)slant")


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
        import math_verify.grader

        math_verify.grader.sympy_numeric_eq = numerically_equal
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
    if any(_is_nowhere(item) for item in (*gold, *answer)):
        return "undecided", "a division by zero, or no number"

    def equal(one: list[Any], other: list[Any]) -> bool:
        found = math_verify.verify(one, other, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True)
        return bool(found)

    same = equal(gold, answer)
    if _RELATION.search(reference + candidate) and equal(answer, gold) != same:
        return "undecided", "an equation and a value are equal only if asked one way"
    if same:
        return "equal", ""
    for name, parsed in (("reference", gold), ("candidate", answer)):
        if all(isinstance(item, str) for item in parsed):
            return "undecided", f"the {name} cannot be read as mathematics"
    return "different", ""


def _is_nowhere(item: Any) -> bool:
    """Whether something parsed contains nan or complex infinity."""
    import sympy

    return isinstance(item, sympy.Basic) and item.has(sympy.nan, sympy.zoo)


def numerically_equal(one: Any, other: Any, float_rounding: int, numeric_precision: int) -> bool:
    """Whether two sympy expressions are equal by their numbers; put in place of math-verify's `sympy_numeric_eq`.

    That rounds to six places and drops what is below 10⁻¹⁵, so that any two small numbers are equal to it.
    """
    import sympy
    from math_verify import grader

    if isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase):
        return one.shape == other.shape and all(
            numerically_equal(a, b, float_rounding, numeric_precision)
            for a, b in zip(one.flat(), other.flat(), strict=True)
        )
    if all(grader.is_atomic_or_pct_atomic(side, sympy.Integer) for side in (one, other)):
        # 9 % is 9, as in `plain.py`.
        return bool(grader.get_pct_val(one, one) == grader.get_pct_val(other, other))
    one, other = grader.safe_sympy_doit(one), grader.safe_sympy_doit(other)
    if isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr):
        return _equal_expressions(one, other)
    return bool(one == other)


def _equal_expressions(one: Any, other: Any) -> bool:
    import sympy

    exact_one, exact_other = (
        side.xreplace({value: sympy.Rational(str(value)) for value in side.atoms(sympy.Float)}) for side in (one, other)
    )
    gap = sympy.expand(exact_one - exact_other)
    if gap == 0:
        return True
    decimals = one.has(sympy.Float) or other.has(sympy.Float)
    if gap.free_symbols or (gap.is_Rational and not decimals):
        return False
    return _within(exact_one, exact_other, gap, decimals=decimals)


def _within(one: Any, other: Any, gap: Any, *, decimals: bool) -> bool:
    """Whether two numbers are as close as rounding explains; `gap` is their difference."""
    digits = 40
    values = [abs(side.evalf(digits)) for side in (one, other, gap)]
    if not all(value.is_Number and value.is_finite for value in values):
        return bool(one == other)
    size = max(values[:2])
    if not decimals:
        return bool(values[2] <= size * EXACT)
    if size < SMALL:
        return bool(values[2] <= size * 0.5 * 10**-PLACES / SMALL)
    return bool(one.round(PLACES) == other.round(PLACES))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _write(replies: IO[str], *reply: str) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
