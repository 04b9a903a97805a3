"""Parts of an answer that more than one reward looks at. Everything here is linear in the text's length."""

from __future__ import annotations

import re
from typing import Any

from easydistill.contracts.reward import Rollout

THINK, END_OF_THINK = "<think>", "</think>"
_LAST_PROMPT_TOKENS = 8
"""As many as a `<think>` and a line end may take."""
_FENCE = re.compile(r"(?P<indent>[ \t]*+)(?P<marks>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^`\s]*+)[^`\n]*+")
_PYTHON = frozenset({"python", "python3", "py"})


def with_opening(rollout: Rollout, tokenizer: Any) -> str:
    """The answer's text, with a `<think>` that the prompt opens: several models' templates end so.

    Args:
        tokenizer: the policy's; None where no prompt opens thoughts.
    """
    if tokenizer is None:
        return rollout.text
    end: str = tokenizer.decode(list(rollout.prompt_ids[-_LAST_PROMPT_TOKENS:]))
    return THINK + rollout.text if end.rstrip().endswith(THINK) else rollout.text


def after_thoughts(text: str) -> str:
    """What follows the last `</think>`; all of a text without thoughts; nothing of one whose thoughts do not end."""
    rest = text.rpartition(END_OF_THINK)[2]
    return "" if THINK in rest else rest


def last_program(text: str) -> str | None:
    """The last closed fenced block of Python, else the last of no named language; all of a text without any fence.

    A block that is indented, as in a list, loses its fence's indent. None where there are fences but no such block: the
    program was cut off, or is in another language.
    """
    named: str | None = None
    unnamed: str | None = None
    opened: re.Match[str] | None = None
    lines: list[str] = []
    fenced = False
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if opened is None:
            if mark is not None:
                fenced, lines = True, []
                opened = mark
        elif mark is not None and mark["marks"].startswith(opened["marks"]) and not mark["info"]:
            if opened["info"].lower() in _PYTHON:
                named = "\n".join(lines)
            elif not opened["info"]:
                unnamed = "\n".join(lines)
            opened = None
        else:
            lines.append(line[min(len(opened["indent"]), len(line) - len(line.lstrip(" \t"))) :])
    # What follows a program without a language's name is often what it prints.
    found = unnamed if named is None else named
    return found if fenced else text
