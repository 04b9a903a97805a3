"""Selects rows whose answer is a program that passes the row's tests. This runs what a model wrote, in the sandbox.

A program is found in the answer, and tests are read and run, as the reward `code` does (`rewards/code.py`): each test
by itself, with limits on time, memory, files and network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Section
from easydistill.contracts.operator import Result, Steps, UnfitRows
from easydistill.contracts.reward import Reward, RewardContext, Rollout
from easydistill.data.records import Rejection, Sample, count_reasons
from easydistill.data.spool import like
from easydistill.rewards import code
from easydistill.synthesis.tools import Tools

STAGE = "code_selection"
SUMMARY = "Rows whose program passes the row's tests."
REASONS = ("no_tests", "no_program", "tests_failed")
LABELLED = True
MAKES_PROMPTS = False
KEEPS_IMAGES = True
_WAVE = 256
"""Rows whose programs are handed to the sandbox at once."""


class Config(Section):
    """How the programs of answers are run."""

    identity_name = "operator.code_selection"

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers", "allow_execution"})

    allow_execution: bool = False
    """Consent to run programs that a model wrote on this machine, in a sandbox. Without it nothing runs."""
    field: NonEmptyStr = "tests"
    """The row's field with the tests: a list of `{"stdin", "stdout"}` objects and of assertions as text."""
    seconds: PositiveFloat = 10.0
    """Maximum time for one test, both wall-clock and processor time."""
    workers: PositiveInt = 2
    """Programs that run at the same time."""

    @model_validator(mode="after")
    def _has_consent(self) -> Config:
        self.reward()
        return self

    def reward(self) -> code.Config:
        """The same settings as the reward's: all tests must pass.

        Raises:
            Unfit: there is no consent.
        """
        return code.Config(
            allow_execution=self.allow_execution,
            field=self.field,
            score="all",
            seconds=self.seconds,
            workers=self.workers,
        )


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Keep rows whose program passes all tests of the row. Asks no model.

    Raises:
        UnfitRows: a row's field holds something else than tests.
    """
    yield from ()
    settings = config.reward()
    for row in rows:
        if wrong := code.check(settings, row.meta):
            raise UnfitRows(f"{wrong}\n    → name the field of the tests in synthesis.field")
    result = Result(like(rows), like(rows), len(rows))
    reward = code.make(settings, RewardContext())
    try:
        for start in range(0, len(rows), _WAVE):
            for row, problem in _checked(settings, reward, rows[start : start + _WAVE]):
                if problem is None:
                    result.accepted.append(row)
                else:
                    result.rejected.append(Rejection(row.id, STAGE, *problem, 1, row.answer))
    finally:
        reward.close()
    result.facts = {"dropped": count_reasons(result.rejected)}
    return result


def _checked(
    settings: code.Config, reward: Reward, rows: Sequence[Sample]
) -> Iterator[tuple[Sample, tuple[str, str] | None]]:
    """Rows with why each is rejected, as (reason, detail); None if it is not."""
    rollouts = [Rollout(tuple(row.prompt), row.answer or "", (), (), True, row.meta) for row in rows]
    for row, rollout, passed in zip(rows, rollouts, reward(rollouts), strict=True):
        if passed is None:
            yield row, ("no_tests", f"the row has no {settings.field!r}")
        elif code.program_of(rollout.text) is None:
            yield row, ("no_program", "the answer has no program")
        else:
            yield row, None if passed else ("tests_failed", "the program does not pass all tests of the row")
