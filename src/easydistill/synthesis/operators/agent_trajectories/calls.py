"""Checks tools before a chat is played with them, and the assistant's calls against their JSON schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easydistill.data.messages import Tool, ToolCall
from easydistill.synthesis.replies import Unusable

_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf")
"""Keywords of a schema through which arguments beside its `properties` may be allowed or forbidden."""


class ToolChecks:
    """The tools of a task, and what a call must be to be one of theirs.

    An argument that a tool's schema does not name is invalid, unless the schema itself says what holds for such
    (`additionalProperties` and its like): JSON Schema would let it pass, and no tool would read it.

    Raises:
        Unusable: the tools have no names, share one, or a schema is none.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        if not tools:
            raise Unusable("no_tools", "the row brings no tools, and synthesis.definitions names none")
        self._checks: dict[str, Any] = {}
        self._named: dict[str, frozenset[str] | None] = {}
        self.tools: dict[str, Tool] = {}
        """By name."""
        for tool in tools:
            self._add(tool)

    def _add(self, tool: Tool) -> None:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from referencing import Registry

        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unusable("bad_tools", f"a tool of type {tool.get('type')!r} is no function that could be answered")
        name = function["name"]
        if name in self.tools:
            raise Unusable("bad_tools", f"two tools are called {name}")
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise Unusable("bad_tools", f"the parameters of {name} are no JSON schema: {error.message}") from None
        self.tools[name] = tool
        # A registry of its own: the default one fetches schemas that a reference names.
        self._checks[name] = Draft202012Validator(schema, registry=Registry())
        named = schema.get("properties", {}) if isinstance(schema, dict) else None
        closed = isinstance(named, dict) and not any(word in schema for word in _OPEN)
        self._named[name] = frozenset((*(named or ()), *schema.get("required", ()))) if closed else None

    def problem(self, call: ToolCall) -> str | None:
        """What is wrong with a call, for the assistant; None if it can be answered."""
        from referencing.exceptions import Unresolvable

        name, arguments = call["name"], call["arguments"]
        if name not in self.tools:
            return f"there is no tool {name!r}; there are: {', '.join(self.tools)}"
        try:
            wrong = min(self._checks[name].iter_errors(arguments), key=_place, default=None)
        except Unresolvable as error:
            raise Unusable(
                "bad_tools", f"the parameters of {name} refer to a schema that is not in them: {error}"
            ) from None
        except RecursionError:
            detail = f"the parameters of {name} refer to themselves without end, or a call of it is nested too deeply"
            raise Unusable("bad_tools", detail) from None
        except (ArithmeticError, ValueError) as error:
            # `multipleOf` of NaN and infinity, which JSON does not know and Python's parser takes.
            return f"invalid arguments of {name}: they cannot be checked: {error}"
        if wrong is not None:
            where = ".".join(map(str, wrong.absolute_path))
            return f"invalid arguments of {name}: {f'{where}: ' if where else ''}{wrong.message[:300]}"
        named = self._named[name]
        unknown = sorted(set(arguments) - named) if named is not None else []
        if unknown:
            return f"invalid arguments of {name}: it has no parameter {', '.join(map(repr, unknown))}"
        return None


def _place(error: Any) -> tuple[list[str], str]:
    return [str(part) for part in error.absolute_path], str(error.message)


def function_of(tool: Tool) -> Mapping[str, Any]:
    """The function that a tool describes."""
    found: Mapping[str, Any] = tool["function"]
    return found
