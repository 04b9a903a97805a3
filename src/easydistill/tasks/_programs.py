"""What tasks about programs share: consent, finding the program in a reply, running tests in the sandbox."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import model_validator

from easydistill.config.base import PositiveFloat, PositiveInt, Unfit
from easydistill.contracts.task import Problem, Reply, Score, TaskConfig
from easydistill.errors import EasyDistillError
from easydistill.rewards.code import Case, program_of


class ProgramTask(TaskConfig):
    """Settings of tasks whose replies are programs."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    allow_execution: bool = False
    """Consent to run programs that a model wrote on this machine, in a sandbox. Without it nothing runs."""
    seconds: PositiveFloat = 10.0
    """Maximum time for one test, both wall-clock and processor time."""
    workers: PositiveInt = 2
    """Programs that run at the same time."""

    @property
    def runs_programs(self) -> bool:
        """Whether these settings run programs."""
        return True

    @model_validator(mode="after")
    def _has_consent(self) -> ProgramTask:
        if self.runs_programs and not self.allow_execution:
            raise Unfit(
                "this task runs unreviewed programs that a model wrote on this machine",
                "set allow_execution to true to permit it: they run in a sandbox with limits on time, memory, files "
                "and network, which is not a virtual machine",
            )
        return self


@dataclass(frozen=True)
class Test:
    """One run of a program, and what its output has to be."""

    case: Case
    accepts: Callable[[str], bool] | None = None
    """Whether an output passes; by default it has to be the case's expected one, but for white space at line ends."""

    def passed(self, result: Any) -> bool:
        if self.accepts is None:
            return self.case.passed(result)
        return bool(result.outcome == "ok" and self.accepts(result.stdout))


def found_program(reply: Reply) -> str | None:
    """The program in a reply: its last block of Python; without any block, all of it."""
    return program_of(reply.text)


def defines(program: str, name: str) -> bool:
    """Whether a program defines a function or class of that name at its top level."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and node.name == name for node in tree.body)


class ProgramScorer:
    """Runs the tests of every reply, in order, until one fails: 1 if all pass, else 0.

    Args:
        test_of: test `number` of a problem, for a program; made when it is needed.
        program_of: the program that runs, and None where a reply has none.
        count_of: how many tests a problem has; by default one.
        memory: bytes that a program may use.
    """

    def __init__(
        self,
        config: ProgramTask,
        test_of: Callable[[Problem, str, int], Test],
        program_of: Callable[[Problem, Reply], str | None],
        count_of: Callable[[Problem], int] = lambda problem: 1,
        memory: int | None = None,
    ) -> None:
        # Imported here, because it loads modules that checking a config does not need.
        from easydistill.sandbox import Limits, Sandbox

        limits = Limits(seconds=config.seconds, cpu_seconds=config.seconds)
        self._name = config.shown_name
        self._sandbox = Sandbox(config.workers, replace(limits, memory=memory) if memory else limits)
        self._test_of, self._program_of, self._count_of = test_of, program_of, count_of

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        programs = [self._program_of(problem, reply) for problem, reply in replies]
        scores = [Score(0.0, program or "", "" if program else "no program") for program in programs]
        waiting = {
            number: (problem, program)
            for number, ((problem, _), program) in enumerate(zip(replies, programs, strict=True))
            if program is not None
        }
        done = 0
        while waiting:
            tests = {number: self._test_of(*asked, done) for number, asked in waiting.items()}
            results = self._run([test.case for test in tests.values()])
            for (number, test), result in zip(tests.items(), results, strict=True):
                problem, program = waiting[number]
                count = self._count_of(problem)
                if not test.passed(result):
                    scores[number] = Score(0.0, program, f"test {done + 1} of {count}: {_failure(result)}")
                    del waiting[number]
                elif done + 1 == count:
                    scores[number] = Score(1.0, program)
                    del waiting[number]
            done += 1
        return scores

    def _run(self, cases: Sequence[Case]) -> list[Any]:
        from easydistill.sandbox import SandboxError

        try:
            return list(self._sandbox.run_many((case.source, case.stdin) for case in cases))
        except SandboxError as error:
            hint = f"{error.hint}, or remove this task" if error.hint else "remove this task"
            raise EasyDistillError(f"tasks: {self._name}: {error.problem}\n    → {hint}") from error

    def close(self) -> None:
        """Nothing to release."""


def _failure(result: Any) -> str:
    last: str = result.stderr.strip().rpartition("\n")[2]
    if result.outcome != "ok":
        return last[:200] or str(result.outcome)
    return "another output"
