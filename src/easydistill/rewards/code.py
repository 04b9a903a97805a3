"""The share of a row's tests that the answer's program passes, or all or nothing. This runs what a model wrote.

The program is the last fenced block of Python after the thoughts, where none is named so the last without a name, or
all of an answer without any fence. The row's field holds a list of tests; each is run by itself, in the sandbox
(`easydistill/sandbox/`), with the program anew:

- `{"stdin": …, "stdout": …}`: the program reads and prints. What it prints is compared line by line, white space at the
  ends of lines and of the text aside.
- a text of Python, such as `assert f(1) == 2`: it is executed after the program, in the program's own namespace. One
  that only defines or imports something runs nothing, and is refused: every program would pass it.

A program must not be able to say that it passed. So a test by assertion counts as passed only where the harness prints,
at the very end, a random word that it has not read before the assertion held: the word waits in a pipe that is not the
program's standard input. Printing "passed", `exit(0)`, a swallowed exception, another `AssertionError`, a patched
`print` or `os.write` gain nothing. What remains, because program and assertion share a process: an object that says it
equals everything; reading the test, or the pipe, by looking through the harness's frames and descriptors; and of course
an answer that lists the expected results, where they are in the prompt. Tests by standard input have none of these but
the last: what is expected never enters the sandbox.
"""

from __future__ import annotations

import ast
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Unfit
from easydistill.config.rewards import RewardConfig
from easydistill.errors import DataError, EasyDistillError
from easydistill.rewards._base import Reward, RewardContext, Rollout
from easydistill.rewards._text import after_thoughts, last_program, with_opening

if TYPE_CHECKING:
    from easydistill.sandbox import RunResult


class Config(RewardConfig):
    """Whether the answer's program passes the row's tests."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    allow_execution: bool = False
    """Consent to run programs that a model wrote, on this machine, in a sandbox. Nothing runs without it."""
    field: NonEmptyStr = "tests"
    """The row's field with the tests: a list of `{"stdin", "stdout"}` sections and of assertions as texts."""
    score: Literal["share", "all"] = "share"
    """The share of tests that pass, or 1 where all do and else 0."""
    seconds: PositiveFloat = 10.0
    """Time that one test may take, by the clock and of the processor."""
    workers: PositiveInt = 2
    """Programs that run at a time."""

    @model_validator(mode="after")
    def _has_consent(self) -> Config:
        if not self.allow_execution:
            raise Unfit(
                "this reward runs programs that a model wrote, which nobody has read, on this machine",
                "set allow_execution to true if that may be: they run in a sandbox with limits on time, memory, files "
                "and network, which is no virtual machine",
            )
        return self


# Everything that the harness needs later is taken before the program runs, which may put anything in its place. The
# test's word is read from the standard input that was, and only then: the program itself finds that one empty.
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
    """What is executed."""
    stdin: str
    wanted: str
    """What it prints, or ends with, where the program passes."""
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
        return result.stdout.endswith(self.wanted) if self.at_the_end else _lines(result.stdout) == self.wanted


def _lines(text: str) -> str:
    """Printed text without white space at the ends of its lines, and without empty lines at its end."""
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


def make(config: Config, context: RewardContext) -> Reward:
    return _Code(config, context.tokenizer)


def check(config: Config, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's tests."""
    problem = _problem(meta.get(config.field))
    return f"the row's field {config.field!r} does not hold tests: {problem}" if problem else None


def knows(config: Config, meta: Mapping[str, Any]) -> bool:
    """Whether a row has tests."""
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
        """Holds nothing."""


def program_of(answer: str) -> str | None:
    """The answer's program; None where it has none."""
    program = last_program(after_thoughts(answer))
    # Half of a surrogate pair cannot be written to anybody.
    return program.encode("utf-8", "replace").decode() if program is not None and program.strip() else None


def tests_of(rollout: Rollout, config: Config) -> list[Mapping[str, str] | str] | None:
    """A row's tests; None where it has none.

    Raises:
        DataError: the field holds something else.
    """
    if problem := check(config, rollout.meta):
        mend = 'write tests as ["assert f(1) == 2", {"stdin": "1", "stdout": "2"}], or set rewards.code.field'
        raise DataError(f"{problem}\n    → {mend}")
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
                return f"{test[:80]!r} runs nothing, so that every program passes it: assert, or call what it defines"
        elif not _is_case(test):
            return f"{str(test)[:80]} is neither a text nor a section of the texts `stdin` and `stdout`"
    return None


_RUNNING = (ast.Call, ast.BinOp, ast.Compare, ast.Subscript, ast.Attribute)
"""Expressions that may run something of a program's; a name or a literal does not."""


def _runs(node: ast.AST) -> bool:
    """Whether a statement does anything with a program: more than to define, import, or name something.

    What stands in a function does nothing until it is called, nor does what waits for `__main__`: a test is not that.
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
    """An expression and its parts, but for what stands in a lambda."""
    waiting = [node] if node is not None else []
    while waiting:
        part = waiting.pop()
        if not isinstance(part, ast.Lambda):
            yield part
            waiting += ast.iter_child_nodes(part)


def _is_case(test: Any) -> bool:
    if not isinstance(test, Mapping) or not {"stdout"} <= test.keys() <= {"stdin", "stdout"}:
        return False
    return all(isinstance(value, str) for value in test.values())
