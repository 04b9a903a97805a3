"""MBPP (Austin et al. 2021): write a Python function from a sentence; the assertions that are shown decide.

Rows have `text` (or `prompt`), `test_list`, and perhaps `test_setup_code` or `test_imports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from easydistill.contracts.task import Problem, Reply, Scorer, ScoringContext
from easydistill.data.row_files import MalformedRow
from easydistill.rewards.code import Case
from easydistill.tasks._programs import ProgramScorer, ProgramTask, Test, found_program
from easydistill.tasks._rows import asked, list_field, row_id, text_field


class Config(ProgramTask):
    """MBPP: write a Python function."""

    identity_name = "task.mbpp"

    task: Literal["mbpp"]
    """Which task this is."""


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    text = text_field(row, "text", "prompt")
    tests = [str(test) for test in list_field(row, "test_list")]
    if not tests:
        raise MalformedRow("test_list is empty")
    imports = row.get("test_imports")
    setup = [str(row.get("test_setup_code") or ""), *(map(str, imports) if isinstance(imports, list | tuple) else ())]
    question = f"{text.strip()}\n\nYour code has to pass these tests:\n\n" + "\n".join(tests)
    messages = asked(f"{question}\n\nReply with one Python code block.")
    fields = {"setup": "\n".join(setup), "tests": tests}
    return Problem(row_id(row, number, "task_id", "id"), messages, fields, str(row.get("code") or ""), text)


def demonstration(config: Config, row: Mapping[str, Any]) -> str:
    return f"```python\n{text_field(row, 'code').strip()}\n```"


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return ProgramScorer(config, _test, _program)


def _program(problem: Problem, reply: Reply) -> str | None:
    return found_program(reply)


def _test(problem: Problem, program: str, number: int) -> Test:
    test = "\n".join([problem.fields["setup"], *problem.fields["tests"]])
    return Test(Case.of(program, test))
