"""Forms whose calls are expressions: `[name(key="value")]` as in Python, and Gemma's `call:name{key:value}`."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from easydistill.data.answers import MalformedCall, tool_call
from easydistill.data.messages import Tool, ToolCall
from easydistill.teachers.parsing.form import Form, ReadRegion, Region, expect, until

_CONSTANTS = {"true": True, "false": False, "null": None}


def _python(start: str, end: str) -> ReadRegion:
    """Reads calls written as Python, as a list or line by line, between two marks."""

    def read(text: str, at: int, tools: Sequence[Tool]) -> Region:
        # A value may hold the end mark, but hardly ever does; then the text does not parse and is refused.
        source, at = until(text, at + len(start), end)
        return python_calls(source), at

    return read


def python_calls(source: str) -> list[ToolCall]:
    """The calls in Python source: a list of calls, or a call a line.

    Raises:
        MalformedCall: there is something else in it.
    """
    try:
        tree = ast.parse(source.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise MalformedCall(f"the calls cannot be parsed: {source.strip()[:80]!r}") from None
    calls: list[ToolCall] = []
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Expr) else None
        listed = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
        calls += [_python_call(item) for item in listed]
    return calls


def _python_call(node: ast.AST | None) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise MalformedCall("a call is not written as name(key=value)")
    return tool_call(
        ast.unparse(node.func), {str(keyword.arg): _python_value(keyword.value) for keyword in node.keywords}
    )


def _python_value(node: ast.AST) -> Any:
    match node:
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub()) if isinstance(value := _python_value(node.operand), int | float):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_python_value(item) for item in items]
        case ast.Dict() if all(isinstance(key, ast.Constant) for key in node.keys):
            return _python_object(node)
    raise MalformedCall(f"an argument is not a plain value: {ast.unparse(node)[:80]}")


def _python_object(node: ast.Dict) -> dict[str, Any]:
    items = zip(node.keys, node.values, strict=True)
    return {str(key.value): _python_value(value) for key, value in items if isinstance(key, ast.Constant)}


class _Gemma:
    """Reads `call:name{key:value}` between two marks; texts stand between two quotes of their own."""

    def __init__(self, start: str, end: str, quote: str) -> None:
        self._start, self._end, self._quote = start, end, quote

    def __call__(self, text: str, at: int, tools: Sequence[Tool]) -> Region:
        head = re.compile(re.escape(self._start) + r"\s*call:([\w.:-]+)\s*(?=\{)").match(text, at)
        if head is None:
            raise MalformedCall(f"a call names no function: {text[at : at + 80]!r}")
        arguments, at = self._value(text, head.end())
        return [tool_call(head[1], arguments)], expect(text, at, self._end)

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        if text.startswith(self._quote, at):
            return until(text, at + len(self._quote), self._quote)
        if text.startswith("{", at):
            return self._object(text, at + 1)
        if text.startswith("[", at):
            return self._list(text, at + 1)
        bare = re.compile(r"[^,}\]]*").match(text, at)
        assert bare is not None
        return _bare_value(bare[0]), bare.end()

    def _object(self, text: str, at: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while not text.startswith("}", at):
            if text.startswith(self._quote, at):
                key, at = until(text, at + len(self._quote), self._quote)
                at = expect(text, at, ":")
            else:
                key, at = until(text, at, ":")
            found[key.strip()], at = self._value(text, at)
            at = self._next(text, at, "}")
        return found, at + 1

    def _list(self, text: str, at: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while not text.startswith("]", at):
            value, at = self._value(text, at)
            found.append(value)
            at = self._next(text, at, "]")
        return found, at + 1

    @staticmethod
    def _next(text: str, at: int, end: str) -> int:
        return at if text.startswith(end, at) else expect(text, at, ",")


def _bare_value(text: str) -> Any:
    text = text.strip()
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return text
    return value if abs(value) < float("inf") else text


EXPRESSION_FORMS: tuple[Form, ...] = (
    Form("lfm2", ("<|tool_call_start|>",), _python("<|tool_call_start|>", "<|tool_call_end|>")),
    Form("olmo", ("<function_calls>",), _python("<function_calls>", "</function_calls>")),
    Form("llama4", ("<|python_start|>",), _python("<|python_start|>", "<|python_end|>")),
    Form("gemma4", ("<|tool_call>",), _Gemma("<|tool_call>", "<tool_call|>", '<|"|>')),
    Form(
        "functiongemma",
        ("<start_function_call>",),
        _Gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
)
