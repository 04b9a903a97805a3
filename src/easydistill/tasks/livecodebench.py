"""LiveCodeBench, code generation (Jain et al. 2024): contest problems by date, with hidden tests.

Rows are those of a release's JSON Lines, which the user brings: `question_content`, `starter_code`, `contest_date`,
`public_test_cases`, `private_test_cases`, `metadata`. Tests are of two kinds: `stdin` (the program reads and prints)
and `functional` (a method of `Solution` is called with JSON values). Private tests may be base64 of zlib of a pickle of
a text: the unpickler here makes texts and refuses everything else, so a file cannot run code.
"""

from __future__ import annotations

import base64
import binascii
import decimal
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, Unfit
from easydistill.contracts.task import Problem, Reply, Scorer, ScoringContext
from easydistill.data.row_files import MalformedRow
from easydistill.rewards.code import Case
from easydistill.tasks._programs import ProgramScorer, ProgramTask, Test, found_program
from easydistill.tasks._rows import asked, row_id, text_field

_LARGEST = 256 << 20
"""Bytes of unpacked private tests beyond which a row is refused."""
_MEMORY = 1 << 30
_ASK = "Solve the following problem with a Python program. Reply with one Python code block.\n\n{question}\n\n{form}"
_STDIN = "The program reads the input from standard input and prints the output to standard output."
_STARTER = "Use this starter code:\n\n```python\n{code}\n```"
_CALL = """\
import json as _json
_given = [_json.loads(_line) for _line in {given}.split("\\n") if _line.strip()]
_made = Solution().{name}(*_given) if "Solution" in globals() else {name}(*_given)
_plain = lambda value: [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
assert _plain(_made) == _plain(_json.loads({expected}))
"""
Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Config(ProgramTask):
    """LiveCodeBench: contest problems by date."""

    identity_name = "task.livecodebench"

    task: Literal["livecodebench"]
    """Which task this is."""
    release: NonEmptyStr | None = None
    """The release that `data` is, such as `v6`: for the report."""
    start_date: Date | None = None
    """Only problems of contests from this day on, such as `2024-08-01`: later than what a model was trained on."""
    end_date: Date | None = None
    """Only problems of contests up to this day."""
    max_new_tokens: PositiveInt = 16_384
    """Longest reply, in the model's tokens. Longer ones are cut, scored as they are, and counted in the report."""
    samples: PositiveInt = 4
    """Replies to each problem. The score, pass@1, is their mean."""
    temperature: NonNegativeFloat = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveShare | None = 0.95
    """Nucleus sampling, as in `inference`."""
    seconds: PositiveFloat = 6.0
    """Maximum time for one test, both wall-clock and processor time."""

    @model_validator(mode="after")
    def _is_a_window(self) -> Config:
        if self.start_date and self.end_date and self.start_date > self.end_date:
            raise Unfit(f"start_date {self.start_date} is after end_date {self.end_date}", "swap them")
        return self


def chosen(config: Config, row: Mapping[str, Any]) -> bool:
    if config.start_date is None and config.end_date is None:
        return True
    day = text_field(row, "contest_date")[:10]
    return (config.start_date or day) <= day <= (config.end_date or day)


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    question = text_field(row, "question_content", "question")
    starter = str(row.get("starter_code") or "").strip("\n")
    tests = _tests_of(row, "public_test_cases") + _tests_of(row, "private_test_cases")
    if not tests:
        raise MalformedRow("the row has no tests")
    name = _function(row)
    if name is None and any(test["testtype"] == "functional" for test in tests):
        raise MalformedRow("the tests call a function, and metadata has no func_name")
    form = _STARTER.format(code=starter) if starter else _STDIN
    messages = asked(_ASK.format(question=question.strip(), form=form))
    identity = row_id(row, number, "question_id", "id")
    return Problem(identity, messages, {"tests": tests, "function": name}, "", question)


def notes(config: Config) -> list[str]:
    window = f"contests from {config.start_date or 'the first'} to {config.end_date or 'the last'}"
    return [f"release {config.release or 'not stated'}, {window}"]


def scorer(config: Config, context: ScoringContext) -> Scorer:
    return ProgramScorer(config, _test, _program, _count, _MEMORY)


def _program(problem: Problem, reply: Reply) -> str | None:
    return found_program(reply)


def _function(row: Mapping[str, Any]) -> str | None:
    metadata = row.get("metadata")
    try:
        found = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        raise MalformedRow("metadata is not JSON") from None
    name = found.get("func_name") if isinstance(found, Mapping) else None
    return str(name).rpartition(".")[2] if name else None


# --- packed tests -----------------------------------------------------------------------------------------------


class _TextsOnly(pickle.Unpickler):
    """Makes values of plain types; whatever would name a class or a function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only a text is expected")

    def persistent_load(self, identity: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of it")


def unpacked(text: str) -> str:
    """The text in base64 of zlib of a pickle.

    Raises:
        MalformedRow: it is anything else, or too large.
    """
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(text.encode(), validate=True), _LARGEST)
        if inflater.unconsumed_tail:
            raise MalformedRow(f"packed tests have more than {_LARGEST >> 20} MiB")
        found = _TextsOnly(io.BytesIO(data)).load()
    except (ValueError, binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise MalformedRow(f"packed tests cannot be unpacked: {error}") from None
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    if not isinstance(found, str):
        raise MalformedRow(f"packed tests hold a {type(found).__name__}, not a text")
    return found


def _tests_of(row: Mapping[str, Any], name: str) -> list[dict[str, str]]:
    value = row.get(name)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = json.loads(unpacked(value))
    tests = []
    for test in value if isinstance(value, list) else [value]:
        kind = test.get("testtype", "stdin") if isinstance(test, Mapping) else None
        if kind not in ("stdin", "functional") or not {"input", "output"} <= test.keys():
            raise MalformedRow(f"{name} holds a test that is neither stdin nor functional")
        tests.append({"testtype": kind, "input": str(test["input"]), "output": str(test["output"])})
    return tests


# --- running ----------------------------------------------------------------------------------------------------


def _count(problem: Problem) -> int:
    return len(problem.fields["tests"])


def _test(problem: Problem, program: str, number: int) -> Test:
    test = problem.fields["tests"][number]
    if test["testtype"] == "stdin":
        case = Case.of(program, {"stdin": test["input"], "stdout": test["output"]})
        return Test(case, partial(same_output, test["output"]))
    call = _CALL.format(given=ascii(test["input"]), name=problem.fields["function"], expected=ascii(test["output"]))
    return Test(Case.of(f"{_PRELUDE}\n{program}", call))


_PRELUDE = (
    "\n".join(
        f"from {module} import *"
        for module in ("typing", "collections", "functools", "itertools", "math", "heapq", "bisect", "string")
    )
    + "\nimport collections, functools, itertools, math, heapq, bisect, string, re, sys, random"
)
"""What the sites of such contests import."""


def same_output(expected: str, made: str) -> bool:
    """Whether two outputs are equal line by line: as texts without outer white space, or as numbers."""
    one, other = ([line.strip() for line in text.strip().split("\n")] for text in (expected, made))
    return len(one) == len(other) and all(map(_same_line, one, other))


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        left, right = ([decimal.Decimal(word) for word in line.split()] for line in (one, other))
    except decimal.InvalidOperation:
        return False
    return left == right
