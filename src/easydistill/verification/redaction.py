r"""Removes the final answer from a chain of thought, so that deriving it requires following the steps.

Input: a text and the known answer. Output: the text with `REDACTED` in place of

1. every final answer that it states (boxes, `####` lines, "the answer is …"), except those that are clearly different,
   such as earlier attempts; the last statement is always replaced;
2. the known answer itself, as a number of the same value or literally, in the conclusion. The conclusion is the last
   line that has anything but a statement, and the lines directly above it as long as they contain the answer too.
   Transitional lines in between (a heading, "Therefore:", `</think>`) do not end it.

In the conclusion operands are kept (`4 - 2 = 2` becomes `4 - 2 = [?]`), because steps on small numbers could not be
followed otherwise. Earlier steps are kept as they are, so an answer that is also an intermediate result remains.
"""

from __future__ import annotations

import re

from easydistill.verification.answers import statements
from easydistill.verification.numbers import bare, numbers, parse_number
from easydistill.verification.plain import compare_plainly

REDACTED = "[?]"
_OPERATOR = r"(?:[-+*/×÷·^−–]|\\(?:times|cdot|div)\b)"
_OPERAND_BEFORE = re.compile(rf"[\d)\]}}%](?: ?[A-Za-z]{{1,20}})?\s*{_OPERATOR}\s*$")
_OPERAND_AFTER = re.compile(rf"\s*(?:[A-Za-z]{{1,20}}\s*)?{_OPERATOR}\s*[$(\[{{\\]*\d")
_TAG = re.compile(r"</?\w+>")
_BOLD = ("**", "__")
_SHORT = 20
"""Maximum characters of a line that, with at most three words, is not a sentence."""
_CONTEXT = 40
"""Characters before and after a number that show whether it is an operand."""


def redact(text: str, known: str) -> str:
    """The text without its final answer, as described above.

    Args:
        known: the right answer alone.
    """
    return _without_conclusion(_without_statements(text, known), known)


def mentions(text: str, known: str) -> bool:
    """Whether the known answer occurs anywhere in a text, as a number of the same value or literally."""
    return bool(_occurrences(text, known))


def _without_statements(text: str, known: str) -> str:
    spans = statements(text)
    for index, (start, end) in reversed(list(enumerate(spans))):
        verdict = compare_plainly(known, text[start:end])
        if index == len(spans) - 1 or verdict is None or verdict.outcome != "different":
            text = f"{text[:start]}{REDACTED}{text[end:]}"
    return text


def _without_conclusion(text: str, known: str) -> str:
    lines = text.split("\n")
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        lines[index] = _without_answer(line, known)
        if REDACTED not in lines[index] and re.search(r"\w", line) and not _is_transitional(line):
            break
    return "\n".join(lines)


def _is_transitional(line: str) -> bool:
    """Whether a line only connects others: a heading, bold text, a tag, a line that ends with a colon, or few words."""
    line = line.strip()
    if re.search(r"\d", line):
        return False
    few_words = len(line) <= _SHORT and len(line.split()) <= 3
    in_bold = line.startswith(_BOLD) and line.rstrip(" .。").endswith(_BOLD)
    return few_words or in_bold or line.startswith("#") or line.endswith((":", "：")) or bool(_TAG.fullmatch(line))


def _without_answer(line: str, known: str) -> str:
    for start, end in reversed(_occurrences(line, known)):
        if parse_number(known) is None or not _is_operand(line, start, end):
            line = f"{line[:start]}{REDACTED}{line[end:]}"
    return line


def _occurrences(text: str, known: str) -> list[tuple[int, int]]:
    number = parse_number(known)
    if number is None:
        return [match.span() for match in _literal_pattern(bare(known)).finditer(text)]
    values = {number.value, number.numeral}
    return [(start, end) for found, start, end in numbers(text) if values & {found.value, found.numeral}]


def _is_operand(line: str, start: int, end: int) -> bool:
    before, after = line[max(0, start - _CONTEXT) : start], line[end : end + _CONTEXT]
    return bool(_OPERAND_BEFORE.search(before) or _OPERAND_AFTER.match(after))


def _literal_pattern(known: str) -> re.Pattern[str]:
    edges = (r"(?<!\w)" if known[:1].isalnum() else "", r"(?!\w)" if known[-1:].isalnum() else "")
    # The letter of a choice, `A`, must not match the article `a`.
    return re.compile(edges[0] + re.escape(known) + edges[1], 0 if len(known) == 1 else re.IGNORECASE)
