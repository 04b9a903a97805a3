"""Forms whose calls are JSON: `<tool_call>{…}</tool_call>` and its relatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from easydistill.data.answers import MalformedCall, tool_call
from easydistill.data.messages import Tool, ToolCall
from easydistill.teachers.parsing.form import Form, ReadRegion, Region, expect, read_json, skip_space, until

_NAMES, _ARGUMENTS = ("name", "tool_name"), ("arguments", "parameters", "args")
_IDS = ("id", "tool_call_id")


def call_of(value: Any) -> ToolCall:
    """The call in a JSON object with a name and arguments, as its keys are usually called.

    Raises:
        MalformedCall: it is none.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value, **value["function"]}
    if not isinstance(value, dict):
        raise MalformedCall(f"a call is not an object: {str(value)[:80]}")
    name = next((value[key] for key in _NAMES if key in value), None)
    identity = next((value[key] for key in _IDS if isinstance(value.get(key), str)), None)
    arguments = [value[key] for key in _ARGUMENTS if key in value]
    return tool_call(name, arguments[0] if arguments else {}, identity)


def calls_of(value: Any) -> list[ToolCall]:
    """The call, or the list of calls, in a JSON value; raises as `call_of`."""
    return [call_of(item) for item in (value if isinstance(value, list) else [value])]


def _between(start: str, end: str, *, end_may_lack: bool = False) -> ReadRegion:
    """Reads JSON between two marks."""

    def read(text: str, at: int, tools: Sequence[Tool]) -> Region:
        value, at = read_json(text, at + len(start))
        behind = skip_space(text, at)
        if not (end_may_lack and behind == len(text)):
            at = expect(text, behind, end)
        return calls_of(value), at

    return read


def _form(name: str, start: str, end: str, *, end_may_lack: bool = False) -> Form:
    return Form(name, (start,), _between(start, end, end_may_lack=end_may_lack))


def _read_mistral(text: str, at: int, tools: Sequence[Tool]) -> Region:
    """`[TOOL_CALLS][{…}]`, or `[TOOL_CALLS]name[ARGS]{…}`, where an id may stand between."""
    at = skip_space(text, expect(text, at, "[TOOL_CALLS]"))
    if text.startswith(("[", "{"), at) and not text.startswith("[ARGS]", at):
        value, at = read_json(text, at)
        return calls_of(value), at
    head, at = until(text, at, "[ARGS]")
    name, _, identity = head.partition("[CALL_ID]")
    value, at = read_json(text, at)
    return [tool_call(name.strip(), value, identity.strip() or None)], at


_PYTHON_TAG = "<|python_tag|>"


def _read_llama(text: str, at: int, tools: Sequence[Tool]) -> Region:
    """JSON objects separated by semicolons, perhaps behind a tag, and nothing else in the text."""
    if text.startswith(_PYTHON_TAG, at):
        at = skip_space(text, at + len(_PYTHON_TAG))
    calls: list[ToolCall] = []
    while True:
        value, at = read_json(text, at)
        calls += calls_of(value)
        behind = skip_space(text, at)
        if not text.startswith(";", behind):
            return calls, at
        at = behind + 1


class _Llama(Form):
    """Without its tag a call looks like any JSON: it is one only if it names itself."""

    def find(self, text: str) -> int:
        at = super().find(text)
        named = re.compile(r'\{\s*"(type|name|function)"\s*:')
        return at if at < 0 or text.startswith(_PYTHON_TAG, at) or named.match(text, at) else -1


def _read_deepseek(text: str, at: int, tools: Sequence[Tool]) -> Region:
    """`function<sep>name`, then a block of JSON (V3, R1), or `name<sep>{…}` (V3.1)."""
    start, end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    one, separator, one_end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    if text.startswith(start, at):
        at = skip_space(text, at + len(start))
    calls: list[ToolCall] = []
    while text.startswith(one, at):
        head, at = until(text, at + len(one), separator)
        if (fence := re.compile(r"([^\n`]+)\n```json\n").match(text, at)) is not None:
            value, at = read_json(text, fence.end())
            at = expect(text, skip_space(text, at), "```")
            calls.append(tool_call(fence[1], value))
        else:
            value, at = read_json(text, at)
            calls.append(tool_call(head, value))
        at = skip_space(text, expect(text, skip_space(text, at), one_end))
    return calls, at + len(end) if text.startswith(end, at) else at


def _read_kimi(text: str, at: int, tools: Sequence[Tool]) -> Region:
    """`functions.name:0` with JSON behind a mark; the whole is the call's id."""
    start, end = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
    one, separator, one_end = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    at = skip_space(text, expect(text, at, start))
    calls: list[ToolCall] = []
    while text.startswith(one, at):
        head, at = until(text, at + len(one), separator)
        value, at = read_json(text, at)
        named = head.strip()
        name = re.sub(r":\d+$", "", named).removeprefix("functions.")
        calls.append(tool_call(name, value, named))
        at = skip_space(text, expect(text, skip_space(text, at), one_end))
    return calls, expect(text, at, end)


JSON_FORMS: tuple[Form, ...] = (
    _form("hermes", "<tool_call>", "</tool_call>"),
    _form("granite", "<|tool_call|>", "<|/tool_call|>", end_may_lack=True),
    _form("granite_plain", "<tool_call>", "</tool_call>", end_may_lack=True),
    _form("nemotron", "<TOOLCALL>", "</TOOLCALL>"),
    _form("cohere", "<|START_ACTION|>", "<|END_ACTION|>"),
    _form("command", "Action: ```json", "```"),
    _form("command_close", "Action:```json", "```"),
    _form("internlm", "<|action_start|><|plugin|>", "<|action_end|>"),
    _form("jamba", "<tool_calls>", "</tool_calls>"),
    Form("mistral", ("[TOOL_CALLS]",), _read_mistral),
    Form("deepseek", ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), _read_deepseek),
    Form("kimi", ("<|tool_calls_section_begin|>",), _read_kimi),
    _Llama("llama", (_PYTHON_TAG, "{"), _read_llama, whole=True),
)
