"""What answers the assistant's calls: a model that plays the tools, functions in the sandbox, or recorded results."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from easydistill.contracts.operator import Ask, Reply, Steps
from easydistill.data.files import read_jsonl
from easydistill.data.messages import ToolCall, call_text
from easydistill.data.records import canonical_json
from easydistill.errors import DataError
from easydistill.synthesis.operators.agent_trajectories.configs import Config, FunctionTools, RecordedTools
from easydistill.synthesis.operators.agent_trajectories.tasks import Task
from easydistill.synthesis.replies import Unusable, field_of, text_of
from easydistill.synthesis.tools import Tools


@dataclass(frozen=True)
class Answered:
    """A call with its result."""

    call: ToolCall
    content: str
    """The result as the assistant reads it."""
    failed: bool
    """Whether the tool reported an error."""
    reply: Reply | None = None


class ToolAnswers(Protocol):
    """Answers the calls of a chat."""

    def check(self, task: Task) -> None:
        """Raise `Unusable` if the task's tools cannot be answered."""

    def answer(self, task: Task, number: int, before: list[Answered], call: ToolCall) -> Steps[Answered]:
        """Answer a valid call.

        Args:
            number: of the task's sample.
            before: the chat's earlier calls.

        Raises:
            Unusable: there is no result.
        """


def tool_answers(config: Config, tools: Tools) -> ToolAnswers:
    """What `synthesis.tools` says.

    Raises:
        DataError: its file cannot be used.
    """
    if isinstance(config.tools, FunctionTools):
        return _Functions(config.tools)
    if isinstance(config.tools, RecordedTools):
        return _Recorded(config.tools.path)
    return _Simulated(config, tools)


def error_text(problem: str) -> str:
    """The result of a call that could not be answered, as the assistant reads it."""
    return json.dumps({"error": problem}, ensure_ascii=False)


class _Simulated:
    """A model plays the tools."""

    def __init__(self, config: Config, tools: Tools) -> None:
        self._config, self._tools = config, tools

    def check(self, task: Task) -> None:
        """Every tool can be played."""

    def answer(self, task: Task, number: int, before: list[Answered], call: ToolCall) -> Steps[Answered]:
        earlier = [{"call": call_text(item.call), "result": item.content} for item in before]
        tool = task.checks.tools[call["name"]]["function"]
        (reply,) = yield [
            self._tools.ask(
                "mock_tool",
                task.goal,
                wants=("result",),
                role="tools",
                index=number,
                tool=json.dumps(tool, ensure_ascii=False, indent=1),
                environment=task.environment_text,
                earlier=earlier,
                call=call_text(call),
            )
        ]
        content = field_of(reply, "result", self._config.reply)
        return Answered(call, content, _is_error(content), reply)


def _is_error(content: str) -> bool:
    """Whether a result is `{"error": …}`."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and list(found) == ["error"]


class _Functions:
    """Functions of a file, run where the role `tools` is asked (`synthesis/tool_functions.py`)."""

    def __init__(self, config: FunctionTools) -> None:
        self._config = config
        self._defined = defined_functions(config.file)

    def check(self, task: Task) -> None:
        lacking = sorted(task.checks.tools.keys() - self._defined)
        if lacking:
            raise Unusable("no_function", f"{self._config.file} has no function {', '.join(lacking)}")

    def answer(self, task: Task, number: int, before: list[Answered], call: ToolCall) -> Steps[Answered]:
        command = {
            "environment": task.environment,
            "before": [_command(item.call) | {"content": item.content} for item in before if self._config.replay],
            "call": _command(call),
        }
        # Equal commands of several chats share one run: what a function returns depends on the command alone.
        (reply,) = yield [Ask(({"role": "user", "content": canonical_json(command)},), "tools")]
        found: dict[str, Any] = json.loads(text_of(reply))
        return Answered(call, found["content"], found["failed"], reply)


def _command(call: ToolCall) -> dict[str, Any]:
    return {"name": call["name"], "arguments": call["arguments"]}


def defined_functions(file: str) -> frozenset[str]:
    """The names of a file's functions.

    Raises:
        DataError: it is no Python file.
    """
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"), file)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} cannot be read as Python: {error}") from None
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


class _Recorded:
    """Results from a file, by tool and arguments."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._results: dict[str, str] = {}
        try:
            for number, row in enumerate(read_jsonl(Path(path)), start=1):
                self._add(number, row)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {error}\n    → write a JSON object a line") from None

    def _add(self, number: int, row: Any) -> None:
        fit = isinstance(row, Mapping) and isinstance(row.get("name"), str)
        if not fit or not isinstance(row.get("arguments", {}), Mapping) or "result" not in row:
            raise ValueError(f'row {number} is not {{"name": …, "arguments": {{…}}, "result": …}}')
        key, result = _key(row["name"], row.get("arguments", {})), result_text(row["result"])
        if self._results.setdefault(key, result) != result:
            raise ValueError(f"row {number}: {row['name']} has another result for the same arguments")

    def check(self, task: Task) -> None:
        """Whether a result is there is known when it is called."""

    def answer(self, task: Task, number: int, before: list[Answered], call: ToolCall) -> Steps[Answered]:
        yield from ()
        content = self._results.get(_key(call["name"], call["arguments"]))
        if content is None:
            raise Unusable("not_recorded", f"{self._path} has no result of {call_text(call)}")
        return Answered(call, content, _is_error(content))


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return canonical_json([name, dict(arguments)])


def result_text(value: Any) -> str:
    """A result as the assistant reads it: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)
