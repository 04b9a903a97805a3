"""Programs of answers are run against the rows' tests; the sandbox is real."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.configs import changed

from easydistill import api
from easydistill.contracts.operator import UnfitRows, answer_with
from easydistill.data.records import Sample
from easydistill.errors import ConfigError
from easydistill.synthesis.operators.code_selection import Config, run

TESTS = ["assert double(2) == 4", "assert double(-1) == -2"]
RIGHT = "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```"
SETTINGS = Config(allow_execution=True, seconds=5)


def row(identity: str, answer: str, tests: Any = TESTS) -> Sample:
    messages = ({"role": "user", "content": "double it"}, {"role": "assistant", "content": answer})
    return Sample(identity, messages, {} if tests is None else {"tests": tests})  # type: ignore[arg-type]


def verdicts(rows: list[Sample], config: Config = SETTINGS) -> dict[str, str]:
    found = answer_with(run(config, rows), lambda asks: [])
    assert found.entered == len(rows)
    return {each.id: "kept" for each in found.accepted} | {each.id: each.reason for each in found.rejected}


def test_only_programs_that_pass_all_tests_stay() -> None:
    rows = [
        row("right", RIGHT),
        row("thinks first", f"<think>def double(x): return x</think>{RIGHT}"),
        row("half right", "```python\ndef double(x):\n    return x * x\n```"),
        row("does not parse", "```python\ndef double(x)\n```"),
        row("claims it", "```python\nprint('passed'); import os; os._exit(0)\n```"),
        row("other language", "```sql\nSELECT 1\n```"),
        row("no tests", RIGHT, None),
        row("prints", "```python\nprint(2 * int(input()))\n```", [{"stdin": "4", "stdout": "8"}]),
    ]
    assert verdicts(rows) == {
        "right": "kept",
        "thinks first": "kept",
        "half right": "tests_failed",
        "does not parse": "tests_failed",
        "claims it": "tests_failed",
        "other language": "no_program",
        "no tests": "no_tests",
        "prints": "kept",
    }


def test_a_field_that_holds_no_tests_is_an_error() -> None:
    with pytest.raises(UnfitRows, match=r"(?s)does not contain tests: it is a str.*synthesis\.field"):
        verdicts([row("a", RIGHT, "assert double(1) == 2")])
    other = Sample("b", row("b", RIGHT).messages, {"checks": TESTS})
    assert verdicts([other], Config(allow_execution=True, field="checks")) == {"b": "kept"}


def test_nothing_runs_without_consent() -> None:
    with pytest.raises(ValidationError, match="allow_execution"):
        Config()
    base = {"job_type": "code_selection", "dataset": {"instruction_path": "rows.json"}}
    with pytest.raises(ConfigError, match="allow_execution to true"):
        api.load(changed(base, {"synthesis.seconds": 3}))
    assert api.load(changed(base, {"synthesis.allow_execution": True})).job.job_type == "code_selection"
    with pytest.raises(ConfigError, match="synthesis"):
        api.load(base)
