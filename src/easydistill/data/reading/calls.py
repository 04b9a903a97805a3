"""Tool calls and tools, in the ways in which public rows spell them → the calls and tools of a chat.

Calls: OpenAI's (`{"id", "type", "function": {"name", "arguments"}}`), flat (`{"name", "arguments"}`), Anthropic's
(`{"name", "input"}`), one or a list of them, as objects or JSON text, the arguments as an object or JSON text.
Tools: OpenAI's or flat, as objects or JSON text, one by one or the list as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from easydistill.data.messages import Tool, ToolCall
from easydistill.data.reading.values import as_list, as_object, from_json_text, is_given, json_in
from easydistill.data.row_files import MalformedRow

_NAMES = ("name", "tool_name", "function", "tool", "recipient_name")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs")
_IDS = ("id", "call_id", "tool_call_id", "tool_use_id")
_SCHEMAS = ("input_schema", "inputSchema", "parameters_json_schema", "parametersJsonSchema")
"""What others call a tool's `parameters`: Anthropic, MCP, Gemini."""
_TAGGED = re.compile(r"<(tool_call|function_call|functioncall)>\s*(.*?)\s*</\1>", re.DOTALL)
_SCHEMA_NULLS = frozenset({"default", "const", "enum", "examples"})
"""Where a null in the description of a tool means null."""


def calls_of(value: Any) -> list[ToolCall]:
    """The calls of a field: one, a list, or the JSON text of either; none where the field is empty.

    Raises:
        MalformedRow: a call has no name, or its arguments are no object.
    """
    if isinstance(value, str):
        value = _from_text(value) if value.strip() else None
    if not is_given(value):
        return []
    items = [value] if isinstance(value, dict) else as_list(value)
    if items is None:
        raise MalformedRow(f"a tool call is an object with a `name` and `arguments`, not {type(value).__name__}")
    return [_call(item) for item in items if item is not None]


def are_calls(value: Any) -> bool:
    """Whether a field holds tool calls."""
    found = from_json_text(value)
    items = [found] if isinstance(found, dict) else as_list(found)
    return bool(items) and all(isinstance(item, dict) and _names_a_call(item) for item in items or ())


def _names_a_call(item: dict[str, Any]) -> bool:
    inner = item["function"] if isinstance(item.get("function"), dict) else item
    return any(isinstance(inner.get(name), str) for name in _NAMES) and any(name in inner for name in _ARGUMENTS)


def _from_text(text: str) -> Any:
    """What a text holds: JSON, calls in tags, or a JSON value a line."""
    tagged = [found for _, found in _TAGGED.findall(text)]
    try:
        if tagged:
            return [json_in(found) for found in tagged]
        return json_in(text)
    except ValueError:
        pass
    try:
        return [json_in(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        raise MalformedRow(f"a tool call is not JSON: {text.strip()[:60]!r}") from None


def _call(item: Any) -> ToolCall:
    if isinstance(item, str):
        item = _from_text(item)
    if not isinstance(item, dict):
        raise MalformedRow(f"a tool call is an object with a `name` and `arguments`, not {type(item).__name__}")
    nested = item.get("function")
    inner = nested if isinstance(nested, dict) else item
    name = next((inner[key] for key in _NAMES if isinstance(inner.get(key), str) and inner[key]), None)
    if name is None:
        raise MalformedRow("a tool call has no name")
    given = next((inner[key] for key in _ARGUMENTS if inner.get(key) is not None), None)
    call: ToolCall = {"name": name, "arguments": _arguments(name, given)}
    identity = _identity(item)
    return {"id": identity, **call} if identity is not None else call


def _identity(item: dict[str, Any]) -> str | None:
    return next((str(item[key]) for key in _IDS if isinstance(item.get(key), str | int) and item[key] != ""), None)


def _arguments(name: str, value: Any) -> dict[str, Any]:
    found: Any = value
    # Some rows hold the JSON text of a JSON text.
    for _ in range(2):
        if isinstance(found, str) and found.strip():
            try:
                found = json_in(found)
            except ValueError:
                problem = f"the arguments of a call of {name!r} are not JSON: {found.strip()[:60]!r}"
                raise MalformedRow(problem) from None
    if found is None or found == "":
        return {}
    if not isinstance(found, dict):
        raise MalformedRow(f"the arguments of a call of {name!r} are no object but {type(found).__name__}")
    return dict(found)


def tools_of(value: Any, column: str = "tools") -> tuple[Tool, ...]:
    """The tools of a field, each as OpenAI describes it; none where the field is empty.

    Raises:
        MalformedRow: it holds something else than tools.
    """
    if isinstance(value, str) and value.strip() in ("", "null", "None"):
        return ()
    found = from_json_text(value)
    if not is_given(found):
        return ()
    items = [found] if isinstance(found, dict) else as_list(found)
    if items is None:
        raise MalformedRow(f"`{column}` is not a list of tools, nor the JSON text of one")
    return tuple(_tool(tool, column) for item in items if item is not None for tool in _declared(item))


def _declared(item: Any) -> list[Any]:
    """The tools of an entry: itself, or those that Gemini declares in one."""
    tool = as_object(item)
    names = ("functionDeclarations", "function_declarations")
    declared = next((as_list(tool[name]) for name in names if is_given(tool.get(name))), None) if tool else None
    return [item] if declared is None else declared


def _tool(item: Any, column: str) -> Tool:
    tool = as_object(item)
    if tool is None:
        raise MalformedRow(f'a tool in `{column}` is not an object with a "name"')
    function = as_object(tool.get("function"))
    inner = _with_parameters(_without(tool, "type") if function is None else function)
    if isinstance(inner.get("name"), str) and inner["name"]:
        rest = {} if function is None else _without(tool, "type", "function")
        return _without_fillers({"type": "function", "function": inner, **rest})
    # Tools of a server, such as {"type": "web_search"}, have no name; templates show them as they are.
    if function is None and isinstance(tool.get("type"), str) and tool["type"] != "function":
        return _without_fillers(tool)
    raise MalformedRow(f'a tool in `{column}` has no "name"')


def _with_parameters(function: dict[str, Any]) -> dict[str, Any]:
    """A function whose schema is an object under the name that templates and servers know, which OpenAI gave it."""
    schema = next((name for name in _SCHEMAS if name in function), None)
    if schema is not None and "parameters" not in function:
        function = {"parameters" if name == schema else name: part for name, part in function.items()}
    parameters = function.get("parameters")
    return {**function, "parameters": from_json_text(parameters)} if isinstance(parameters, str) else function


def _without(tool: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: part for name, part in tool.items() if name not in names}


def _without_fillers(tool: Tool) -> Tool:
    found: Tool = _described(tool)
    return found


def _described(value: Any) -> Any:
    """A tool without the nulls that Arrow puts where another tool has a parameter."""
    if isinstance(value, Mapping):
        return {
            name: item if name in _SCHEMA_NULLS else _described(item)
            for name, item in value.items()
            if item is not None or name in ("default", "const")
        }
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    return value


def parameters_of(tools: tuple[Tool, ...]) -> dict[str, frozenset[str]]:
    """The names of each tool's parameters, as far as they are described."""
    found: dict[str, frozenset[str]] = {}
    for tool in tools:
        inner = tool.get("function")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            schema = inner.get("parameters")
            names = schema.get("properties", schema) if isinstance(schema, dict) else None
            if isinstance(names, dict):
                found[inner["name"]] = frozenset(names)
    return found


def without_fillers(call: ToolCall, declared: Mapping[str, frozenset[str]]) -> ToolCall:
    """A call without nulls for parameters that the tool does not have: a conversion from a table has left them."""
    arguments = call["arguments"]
    known = declared.get(call["name"])
    if known is None or None not in arguments.values():
        return call
    kept = {name: value for name, value in arguments.items() if value is not None or name in known}
    return {**call, "arguments": kept}
