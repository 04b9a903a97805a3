"""Parts of an answer that several rewards read. Everything here takes time linear in the text's length."""

from __future__ import annotations

import re
from typing import Any

from easydistill.contracts.reward import Rollout
from easydistill.data.answers import THOUGHT_MARKS, opened_thoughts

THINK, END_OF_THINK = "<think>", "</think>"
_CHANNELS = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
"""The same in harmony, the form of gpt-oss."""
_LAST_PROMPT_TOKENS = 8
"""Enough for a `<think>` and a line break."""
_FENCE = re.compile(r"(?P<indent>[ \t]*+)(?P<marks>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^`\s]*+)[^`\n]*+")
_PYTHON = frozenset({"python", "python3", "py"})


def with_opening(rollout: Rollout, tokenizer: Any) -> str:
    """The answer's text, preceded by the mark of thoughts if the prompt ends with one, as several templates' do.

    Args:
        tokenizer: the policy's; None if no prompt ends with such a mark.
    """
    if tokenizer is None:
        return rollout.text
    end: str = tokenizer.decode(list(rollout.prompt_ids[-_LAST_PROMPT_TOKENS:]))
    return opened_thoughts(end).rstrip() + rollout.text


def after_thoughts(text: str) -> str:
    """The text after the last thoughts: all of it if there are none, nothing if the thoughts do not end."""
    for start, end in (*THOUGHT_MARKS, _CHANNELS):
        text = text.rpartition(end)[2]
        if start in text:
            return ""
    return text


def last_program(text: str) -> str | None:
    """The last closed code block marked as Python, or else the last unmarked one; without any fence, the whole text.

    A block that is indented, as in a list, loses the indent of its fence. None if there are fences but no such block:
    the program was cut off or is in another language.
    """
    found = programs(text)
    return text if found is None else found[-1] if found else None


def programs(text: str) -> list[str] | None:
    """All closed code blocks marked as Python, or else all unmarked ones; None of a text without any fence."""
    named: list[str] = []
    unnamed: list[str] = []
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
                named.append("\n".join(lines))
            elif not opened["info"]:
                unnamed.append("\n".join(lines))
            opened = None
        else:
            lines.append(line[min(len(opened["indent"]), len(line) - len(line.lstrip(" \t"))) :])
    # An unmarked block after a program is often its output.
    return (named or unnamed) if fenced else None
