r"""A chain of thought without its final answer: whoever derives the answer from it has to follow the steps.

Enters: a text and the known answer. Leaves: the text with `REDACTED` in place of

1. every final answer that it states (boxes, `####` lines, "the answer is …"), unless it is plainly another one, such
   as an earlier attempt; the last statement always;
2. the known answer itself, as a number of the same value or literally, in its conclusion: the last line that says
   anything but a statement, and the lines right above it as long as they hold the answer too. Lines between that only
   lead over (a heading, "Therefore:", `</think>`) do not end it.

In the conclusion an operand stays (`4 - 2 = 2` becomes `4 - 2 = [?]`), else steps on small numbers could not be
followed. Steps further up stay as they are, so an answer that is also an intermediate result is still there.
"""

from __future__ import annotations

import re

from easydistill.verification.answers import statements
from easydistill.verification.equality import compare_plainly
from easydistill.verification.numbers import bare, numbers, parse_number

REDACTED = "[?]"
_OPERATOR = r"(?:[-+*/×÷·^−–]|\\(?:times|cdot|div)\b)"
_OPERAND_BEFORE = re.compile(rf"[\d)\]}}%](?: ?[A-Za-z]{{1,20}})?\s*{_OPERATOR}\s*$")
_OPERAND_AFTER = re.compile(rf"\s*(?:[A-Za-z]{{1,20}}\s*)?{_OPERATOR}\s*[$(\[{{\\]*\d")
_TAG = re.compile(r"</?\w+>")
_BOLD = ("**", "__")
_SHORT = 20
"""Characters of a line that is no sentence, nor are three words."""
_CONTEXT = 40
"""Characters beside a number that tell whether it is an operand."""


def redact(text: str, known: str) -> str:
    """The text without its final answer; see the module.

    Args:
        known: the right answer, by itself.
    """
    return _without_conclusion(_without_statements(text, known), known)


def mentions(text: str, known: str) -> bool:
    """Whether the known answer stands anywhere in a text, as a number of the same value or literally."""
    return bool(_places(text, known))


def _without_statements(text: str, known: str) -> str:
    spans = statements(text)
    for index, (start, end) in reversed(list(enumerate(spans))):
        said = compare_plainly(known, text[start:end])
        if index == len(spans) - 1 or said is None or said.outcome != "different":
            text = f"{text[:start]}{REDACTED}{text[end:]}"
    return text


def _without_conclusion(text: str, known: str) -> str:
    lines = text.split("\n")
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        lines[index] = _without_answer(line, known)
        if REDACTED not in lines[index] and re.search(r"\w", line) and not _leads_over(line):
            break
    return "\n".join(lines)


def _leads_over(line: str) -> bool:
    """Whether a line says nothing itself: a heading, in bold, a bare tag, before a colon, or a few words."""
    line = line.strip()
    if re.search(r"\d", line):
        return False
    few_words = len(line) <= _SHORT and len(line.split()) <= 3
    in_bold = line.startswith(_BOLD) and line.rstrip(" .。").endswith(_BOLD)
    return few_words or in_bold or line.startswith("#") or line.endswith((":", "：")) or bool(_TAG.fullmatch(line))


def _without_answer(line: str, known: str) -> str:
    for start, end in reversed(_places(line, known)):
        if parse_number(known) is None or not _is_operand(line, start, end):
            line = f"{line[:start]}{REDACTED}{line[end:]}"
    return line


def _places(text: str, known: str) -> list[tuple[int, int]]:
    number = parse_number(known)
    if number is None:
        return [match.span() for match in _literally(bare(known)).finditer(text)]
    values = {number.value, number.numeral}
    return [(start, end) for found, start, end in numbers(text) if values & {found.value, found.numeral}]


def _is_operand(line: str, start: int, end: int) -> bool:
    before, after = line[max(0, start - _CONTEXT) : start], line[end : end + _CONTEXT]
    return bool(_OPERAND_BEFORE.search(before) or _OPERAND_AFTER.match(after))


def _literally(known: str) -> re.Pattern[str]:
    edges = (r"(?<!\w)" if known[:1].isalnum() else "", r"(?!\w)" if known[-1:].isalnum() else "")
    # A choice's letter is not an article.
    return re.compile(edges[0] + re.escape(known) + edges[1], 0 if len(known) == 1 else re.IGNORECASE)
