"""What a row says and no reader has read, so that it is told and not lost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from easydistill.data.messages import Message, full_text
from easydistill.data.reading import keys
from easydistill.data.reading.values import is_given

_WATCHED = frozenset(
    (
        *(*keys.PROMPTS, *keys.BESIDE, *keys.SYSTEMS, *keys.ANSWERS, "targets", "target", *keys.CALLS, *keys.THOUGHTS),
        *(*keys.TOOLS, *keys.LABELS, *keys.CHATS, *keys.PAIRED, "history", "weight", "loss", "train", "weights"),
        *("generations", "responses", "documents", "document", "passage", "passages", "article", "choices", "options"),
        *("enable_thinking", "reasoning_effort", "builtin_tools", "date_string", "persona", "functions"),
        *("developer", "developer_prompt", "developer_message", "instructions", "meta_instruction", "train_on_turn"),
        *("contexts", "ctxs", "background", "knowledge", "references", "evidence", "facts", "table", "schema", "story"),
        *("starter_code", "examples", "demonstrations", "few_shot", "hint", "hints", "suffix", "scenario"),
        *("reasoning_language", "think_content", "cot_content", "negative_output", "scratchpad", "explanation"),
    )
)
_VERDICT = re.compile(
    r"(is|are)_.*(safe|correct|valid|good|right)|.*_is_valid|correct|safe|passed|success|accepted|resolved"
)
"""Fields of a row that, where they are false, say that its answer is no good."""
_OTHER_ANSWER = re.compile(r"\w+_(generation|response|solution|output|reasoning|thinking|thoughts)")
"""Names of texts that could be the answer, or the thoughts before it, in place of what was read."""
_PATTERN = re.compile(r"system.*|.*_tools|tool_.*|sys_.*", re.IGNORECASE)


def unread_fields(row: Mapping[str, Any], used: set[str], messages: Iterable[Message]) -> set[str]:
    """Names of fields that could say something of the chat and are not in it.

    Args:
        used: the fields that the chat was read from.
        messages: the chat: what it says is not lost.
    """
    found: set[str] = set()
    text: str | None = None
    for name, value in row.items():
        if not isinstance(name, str) or name in used or not is_given(value):
            continue
        if value is False and _VERDICT.fullmatch(name):
            found.add(f"{name}: false")
        elif _is_watched(name, value):
            text = "\n".join(map(full_text, messages)) if text is None else text
            if not _is_told(name, value, text):
                found.add(name)
    return found


def _is_watched(name: str, value: Any) -> bool:
    """Whether a field could say something of the chat."""
    if name in _WATCHED or _PATTERN.fullmatch(name):
        return True
    return isinstance(value, str) and _OTHER_ANSWER.fullmatch(name) is not None


def _is_told(name: str, value: Any, text: str) -> bool:
    """Whether a field's value says nothing, or nothing that the chat does not say."""
    if isinstance(value, str):
        words = value.strip()
        flag = name in keys.THOUGHTS[1:] and words.lower() in keys.FLAGS
        return not words or flag or words in text
    # `true` marks a row as a good one, as all rows without the mark are taken to be.
    return (value is True and name in (*keys.LABELS, "train", "loss")) or (name == "weight" and value == 1)


def unread_lines(counts: Mapping[str, int], rows: int, where: str) -> list[str]:
    """What to tell of a file's fields that are not read.

    Args:
        counts: rows in which a field says something, by the field's name.
        rows: rows of the file.
        where: the file.
    """
    return [
        f"{where}: `{name}` is not read (in {count:,} of {rows:,} rows); if it belongs to the chat, name it in "
        "dataset.columns"
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
