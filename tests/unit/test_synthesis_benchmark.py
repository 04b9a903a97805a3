"""The synthesis benchmark's own count of right answers, and its configs."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from benchmarks.synthesis.arms import arms, pipeline
from benchmarks.synthesis.recount import answer_of, recount

import easydistill


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"So \boxed{12}, not 13.", 12),
        (r"First \boxed{1}, then \boxed{\$1,250.50}.", Fraction("1250.5")),
        ("There are 3 boxes of 4, so 12 in all.", 12),
        ("It falls to -5", -5),
        (r"\boxed{many}, that is 7", 7),
        ("The answer is 3 * 3 = 9. There were 4 of them", 9),
        ("The answer is: 11.\n\nStep 3 is left", 11),
        ("None.", None),
    ],
)
def test_answers_are_found(reply: str, answer: Fraction | None) -> None:
    assert answer_of(reply) == answer


def test_both_kinds_of_mistake_are_told(tmp_path: Path) -> None:
    problems = tmp_path / "problems.json"
    problems.write_text(json.dumps([{"id": str(n), "question": "?", "answer": f"#### {n}"} for n in range(4)]))
    accepted = [{"id": "0", "output": "It is 0."}, {"id": "1", "output": "It is 9."}]
    (tmp_path / "labeled.json").write_text(json.dumps(accepted))
    (tmp_path / "manifest.json").write_text("{}")
    refused = [
        {"id": "2", "reason": "wrong_answer", "raw": {"text": "It is 2."}},
        {"id": "3", "reason": "wrong_answer", "raw": {"text": "It is 8."}},
    ]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in refused))
    assert recount(problems, tmp_path) == {
        "accepted": 2,
        "accepted_and_right": 1,
        "accepted_and_disputed": ["1"],
        "refused_as_wrong": 2,
        "refused_as_wrong_but_right": ["2"],
    }
    (tmp_path / "manifest.json").unlink()
    assert recount(problems, tmp_path)["accepted"] == 0, "rows of an earlier attempt do not count"


@pytest.mark.parametrize("rows", [None, 2])
def test_its_configs_are_valid(rows: int | None, tmp_path: Path) -> None:
    for arm in arms(tmp_path / "problems.jsonl"):
        easydistill.validate(arm.config(tmp_path / "rows.json", tmp_path / arm.name, rows, 0))
    easydistill.validate(pipeline({"seeds": tmp_path / "seeds.json"}, tmp_path / "pipeline", rows, 0))
