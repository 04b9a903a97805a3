"""HumanEval (Chen et al. 2021): complete a Python function; hidden assertions decide.

Rows have `task_id`, `prompt` (imports, signature, docstring), `entry_point` and `test`, which defines `check`. A reply
may be the whole function (the last block of code that has it) or the rest of its body. Before it stand the prompt's
imports and helpers, which replies often leave out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from easydistill.contracts.task import Problem, Reply, Scorer, ScoringContext
from easydistill.rewards._text import programs
from easydistill.rewards.code import Case
from easydistill.tasks._programs import ProgramScorer, ProgramTask, Test, defines, found_program
from easydistill.tasks._rows import asked, row_id, text_field

_ASK = (
    "Complete the following Python function. Reply with the whole function in one Python code block, and with nothing "
    "else that runs.\n\n```python\n{prompt}\n```"
)


class Config(ProgramTask):
    """HumanEval: complete a Python function."""

    identity_name = "task.humaneval"

    task: Literal["humaneval"]
    """Which task this is."""


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    prompt, name, test = text_field(row, "prompt"), text_field(row, "entry_point"), text_field(row, "test")
    fields = {"prompt": prompt, "entry_point": name, "test": test}
    reference = str(row.get("canonical_solution") or "")
    messages = asked(_ASK.format(prompt=prompt.strip("\n")))
    return Problem(row_id(row, number, "task_id", "id"), messages, fields, reference, prompt)


def demonstration(config: Config, row: Mapping[str, Any]) -> str:
    return f"```python\n{text_field(row, 'prompt')}{text_field(row, 'canonical_solution')}\n```"


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return ProgramScorer(config, _test, program)


def program(problem: Problem, reply: Reply) -> str | None:
    """The program that a reply makes of a problem; None without one."""
    prompt, name = problem.fields["prompt"], problem.fields["entry_point"]
    # Behind the function, a reply may show how it is called.
    whole = next((block for block in reversed(programs(reply.text) or []) if defines(block, name)), None)
    written = found_program(reply) if whole is None else whole
    if written is None:
        return None
    if defines(written, name):
        before = re.split(rf"^(?:async )?def {re.escape(name)}\b", prompt, maxsplit=1, flags=re.MULTILINE)[0]
        return f"{before}\n{written}"
    # The rest of the body.
    lines = written.split("\n")
    indented = next(line for line in lines if line.strip())[0].isspace()
    body = lines if indented else [f"    {line}" if line.strip() else line for line in lines]
    return "\n".join([prompt.rstrip(), *body])


def _test(problem: Problem, written: str, number: int) -> Test:
    return Test(Case.of(written, f"{problem.fields['test']}\ncheck({problem.fields['entry_point']})"))
