"""The share of a row's tests that the answer's program passes, or all or nothing. This runs what a model wrote.

The program is the last code block marked as Python after the thoughts, or else the last unmarked block, or the whole
answer if it has no code block. The row's field has a list of tests. Each runs on its own in the sandbox
(`easydistill/sandbox/`), with the program anew:

- `{"stdin": …, "stdout": …}`: the program reads and prints. Its output is compared line by line, ignoring white space
  at the ends of lines and of the text.
- a text of Python, such as `assert f(1) == 2`: it is executed after the program, in the same namespace. A text that
  only defines or imports something is refused, because every program would pass it.

A program must not be able to claim that it passed. So a test by assertion counts as passed only if, at the very end,
the harness prints a random word that it did not read before the assertion held: the word waits in a pipe that is not
the program's standard input. Printing "passed", `exit(0)`, a swallowed exception, another `AssertionError`, a patched
`print` or `os.write` achieve nothing. Because program and assertion share a process, some ways remain: an object that
compares equal to everything; reading the test or the pipe through the harness's frames and descriptors; and an answer
that lists the expected results, if the prompt contains them. Tests by standard input are open only to the last, since
the expected output never enters the sandbox.
"""

from __future__ import annotations

import ast
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Unfit
from easydistill.contracts.reward import Reward, RewardConfig, RewardContext, Rollout
from easydistill.errors import DataError, EasyDistillError
from easydistill.rewards._text import after_thoughts, last_program, with_opening

if TYPE_CHECKING:
    from easydistill.sandbox import RunResult


class Config(RewardConfig):
    """Whether the answer's program passes the row's tests."""

    identity_name = "reward.code"

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    allow_execution: bool = False
    """Consent to run programs that a model wrote on this machine, in a sandbox. Without it nothing runs."""
    field: NonEmptyStr = "tests"
    """The row's field with the tests: a list of `{"stdin", "stdout"}` objects and of assertions as text."""
    score: Literal["share", "all"] = "share"
    """`share`: the share of tests that pass; `all`: 1 if all pass, else 0."""
    seconds: PositiveFloat = 10.0
    """Maximum time for one test, both wall-clock and processor time."""
    workers: PositiveInt = 2
    """Programs that run at the same time."""

    @model_validator(mode="after")
    def _has_consent(self) -> Config:
        if not self.allow_execution:
            raise Unfit(
                "this reward runs unreviewed programs that a model wrote on this machine",
                "set allow_execution to true to permit it: they run in a sandbox with limits on time, memory, files "
                "and network, which is not a virtual machine",
            )
        return self


# The harness keeps references to everything that it needs later, because the program may replace any of it. It reads
# the word from the original standard input, and only after the assertion held; the program's standard input is empty.
_HARNESS = """\
import os, sys, types
def main(program, test):
    run, translate, read, write, leave = exec, compile, os.read, os.write, os._exit
    flush, trace, module = sys.stdout.flush, sys.settrace, types.ModuleType("solution")
    word, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.modules["solution"] = module
    try:
        run(translate(program, "<program>", "exec", dont_inherit=True, optimize=0), module.__dict__)
        trace(None)
        run(translate(test, "<test>", "exec", dont_inherit=True, optimize=0), module.__dict__)
        flush()
    except BaseException:
        leave(1)
    write(1, b"\\n" + read(word, {length}))
    leave(0)
main({program}, {test})
"""


@dataclass(frozen=True)
class Case:
    """One run of a program."""

    source: str
    """The Python source that is executed."""
    stdin: str
    expected: str
    """The output of a program that passes, or with `at_the_end` only the end of it."""
    at_the_end: bool

    @classmethod
    def of(cls, program: str, test: Mapping[str, str] | str) -> Case:
        if not isinstance(test, str):
            return cls(program, test.get("stdin", ""), _lines(test["stdout"]), at_the_end=False)
        word = secrets.token_hex(16)
        source = _HARNESS.format(program=ascii(program), test=ascii(test), length=len(word))
        return cls(source, word, f"\n{word}", at_the_end=True)

    def passed(self, result: RunResult) -> bool:
        if result.outcome != "ok":
            return False
        return result.stdout.endswith(self.expected) if self.at_the_end else _lines(result.stdout) == self.expected


def _lines(text: str) -> str:
    """The text without white space at the ends of lines and without empty lines at its end."""
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


def make(config: Config, context: RewardContext) -> Reward:
    return _Code(config, context.tokenizer)


def check(config: Config, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's tests."""
    problem = _problem(meta.get(config.field))
    return f"the row's field {config.field!r} does not contain tests: {problem}" if problem else None


def knows(config: Config, meta: Mapping[str, Any]) -> bool:
    """Whether a row has any tests."""
    return bool(meta.get(config.field))


class _Code:
    def __init__(self, config: Config, tokenizer: Any) -> None:
        # Imported here, because it loads modules that checking a config does not need.
        from easydistill.sandbox import Limits, Sandbox

        self._config, self._tokenizer = config, tokenizer
        self._sandbox = Sandbox(config.workers, Limits(seconds=config.seconds, cpu_seconds=config.seconds))

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        values: list[float | None] = []
        cases: list[tuple[int, Case]] = []
        counts: dict[int, int] = {}
        for row, rollout in enumerate(rollouts):
            tests = tests_of(rollout, self._config)
            program = program_of(with_opening(rollout, self._tokenizer))
            values.append(None if tests is None else 0.0)
            if tests is not None and program is not None:
                counts[row] = len(tests)
                cases += [(row, Case.of(program, test)) for test in tests]
        passed = dict.fromkeys(counts, 0)
        for (row, case), result in zip(cases, self._run([case for _, case in cases]), strict=True):
            passed[row] += case.passed(result)
        for row, count in counts.items():
            values[row] = passed[row] / count if self._config.score == "share" else float(passed[row] == count)
        return values

    def _run(self, cases: Sequence[Case]) -> list[RunResult]:
        from easydistill.sandbox import SandboxError

        try:
            return self._sandbox.run_many((case.source, case.stdin) for case in cases)
        except SandboxError as error:
            hint = f"{error.hint}, or remove this reward" if error.hint else "remove this reward"
            raise EasyDistillError(f"rewards.code: {error.problem}\n    → {hint}") from error

    def close(self) -> None:
        """Nothing to release."""


def program_of(answer: str) -> str | None:
    """The answer's program; None if it has none."""
    program = last_program(after_thoughts(answer))
    # A lone surrogate cannot be encoded.
    return program.encode("utf-8", "replace").decode() if program is not None and program.strip() else None


def tests_of(rollout: Rollout, config: Config) -> list[Mapping[str, str] | str] | None:
    """A row's tests; None if it has none.

    Raises:
        DataError: the field has something else in it.
    """
    if problem := check(config, rollout.meta):
        hint = 'write tests as ["assert f(1) == 2", {"stdin": "1", "stdout": "2"}], or set rewards.code.field'
        raise DataError(f"{problem}\n    → {hint}")
    return rollout.meta.get(config.field) or None


def _problem(tests: Any) -> str | None:
    if tests is None:
        return None
    if not isinstance(tests, list):
        return f"it is a {type(tests).__name__}, not a list"
    for test in tests:
        if isinstance(test, str):
            try:
                tree = ast.parse(test, "<test>")
                compile(tree, "<test>", "exec", dont_inherit=True)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                return f"{test[:80]!r} is not Python: {error}"
            if not any(map(_runs, tree.body)):
                return f"{test[:80]!r} runs nothing, so every program would pass: assert, or call what it defines"
        elif not _is_input_output(test):
            return f"{str(test)[:80]} is neither a text nor an object of the texts `stdin` and `stdout`"
    return None


_RUNNING = (ast.Call, ast.BinOp, ast.Compare, ast.Subscript, ast.Attribute)
"""Expressions that may run some of the program's code; a name or a literal does not."""


def _runs(node: ast.AST) -> bool:
    """Whether a statement does more than define, import or name something.

    The body of a function runs only when it is called, and that of `if __name__ == "__main__"` never, because a test is
    not the main module.
    """
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Import | ast.ImportFrom | ast.Pass):
        return False
    if isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.Eq):
        sides = [node.test.left, *node.test.comparators]
        if {getattr(side, "id", getattr(side, "value", None)) for side in sides} == {"__name__", "__main__"}:
            return any(map(_runs, node.orelse))
    if isinstance(node, ast.Try | ast.ClassDef):
        return any(map(_runs, [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]))
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
        return any(isinstance(part, _RUNNING) for part in _evaluated(node.value))
    return isinstance(node, ast.stmt)


def _evaluated(node: ast.AST | None) -> Iterator[ast.AST]:
    """An expression and its parts, except the bodies of lambdas."""
    pending = [node] if node is not None else []
    while pending:
        part = pending.pop()
        if not isinstance(part, ast.Lambda):
            yield part
            pending += ast.iter_child_nodes(part)


def _is_input_output(test: Any) -> bool:
    if not isinstance(test, Mapping) or not {"stdout"} <= test.keys() <= {"stdin", "stdout"}:
        return False
    return all(isinstance(value, str) for value in test.values())
