"""Forms whose calls are tags, one for each argument; values have no quotes, so the tools' schemas tell their types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from easydistill.data.answers import MalformedCall, tool_call
from easydistill.data.messages import Tool, ToolCall
from easydistill.teachers.parsing.form import Form, ReadRegion, Region, expect, skip_space, typed, until


def _one_line_break_less(value: str) -> str:
    """A value without the line break that templates put on each side of it."""
    return value.removeprefix("\n").removesuffix("\n")


def _functions(start: str, end: str) -> ReadRegion:
    """Reads `<function=name><parameter=key>value</parameter></function>` between two marks (Qwen3-Coder)."""
    parameter = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)

    def read(text: str, at: int, tools: Sequence[Tool]) -> Region:
        at = skip_space(text, at + len(start))
        calls: list[ToolCall] = []
        while text.startswith("<function=", at):
            name, at = until(text, at + len("<function="), ">")
            arguments: dict[str, Any] = {}
            while (found := parameter.match(text, at)) is not None:
                key = found[1].strip()
                arguments[key] = typed(_one_line_break_less(found[2]), key, name.strip(), tools)
                at = found.end()
            at = skip_space(text, expect(text, skip_space(text, at), "</function>"))
            calls.append(tool_call(name, arguments))
        if not calls:
            raise MalformedCall(f"a call names no function: {text[at : at + 80]!r}")
        return calls, expect(text, at, end)

    return read


def _invokes(start: str, prefix: str = "") -> ReadRegion:
    """Reads `<invoke name="…"><parameter name="…">value</parameter></invoke>` between two marks (MiniMax, DeepSeek)."""
    mark, end = re.escape(prefix), start.replace("<", "</", 1)
    invoke = re.compile(rf'<{mark}invoke name="([^"\n]+)">\s*')
    parameter = re.compile(
        rf'<{mark}parameter name="([^"\n]+)"(?: string="(true|false)")?>(.*?)</{mark}parameter>\s*', re.DOTALL
    )

    def read(text: str, at: int, tools: Sequence[Tool]) -> Region:
        at = skip_space(text, at + len(start))
        calls: list[ToolCall] = []
        while (opened := invoke.match(text, at)) is not None:
            name, at = opened[1], opened.end()
            arguments: dict[str, Any] = {}
            while (found := parameter.match(text, at)) is not None:
                key, is_text, value = found.groups()
                arguments[key] = value if is_text == "true" else typed(_one_line_break_less(value), key, name, tools)
                at = found.end()
            at = skip_space(text, expect(text, at, f"</{prefix}invoke>"))
            calls.append(tool_call(name, arguments))
        if not calls:
            raise MalformedCall(f"a call names no function: {text[at : at + 80]!r}")
        return calls, expect(text, at, end)

    return read


def _read_glm(text: str, at: int, tools: Sequence[Tool]) -> Region:
    """`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`."""
    pair = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
    head = re.compile(r"<tool_call>\s*([\w.:/-]+)\s*(?=<arg_key>|</tool_call>)").match(text, at)
    if head is None:
        raise MalformedCall(f"a call names no function: {text[at : at + 80]!r}")
    at = head.end()
    arguments: dict[str, Any] = {}
    while (found := pair.match(text, at)) is not None:
        key = found[1].strip()
        arguments[key] = typed(found[2], key, head[1], tools)
        at = found.end()
    return [tool_call(head[1], arguments)], expect(text, skip_space(text, at), "</tool_call>")


def _invoking(name: str, prefix: str, around: str = "function_calls") -> Form:
    start = f"<{around}>" if ":" in around else f"<{prefix}{around}>"
    return Form(name, (start,), _invokes(start, prefix))


TAG_FORMS: tuple[Form, ...] = (
    Form("qwen_coder", ("<tool_call>",), _functions("<tool_call>", "</tool_call>")),
    Form("seed", ("<seed:tool_call>",), _functions("<seed:tool_call>", "</seed:tool_call>")),
    Form("glm", ("<tool_call>",), _read_glm),
    _invoking("minimax", "", "minimax:tool_call"),
    _invoking("deepseek_dsml", "｜DSML｜"),
    _invoking("atem", "atem:"),
    _invoking("invoke", ""),
)
