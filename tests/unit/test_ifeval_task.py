"""IFEval: four figures by lm-eval's checkers, with or without nltk's data, and no download."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

from tests.conftest import REAL_DATA

from easydistill.contracts.task import Problem, Reply, Score, ScoringContext
from easydistill.data.row_files import MalformedRow
from easydistill.tasks import TASKS
from easydistill.tasks.ifeval import has_sentence_data

TASK: Any = TASKS.module("ifeval")


def problem_of(*instructions: tuple[str, dict[str, Any]]) -> Problem:
    row = {
        "key": 1,
        "prompt": "Write about tea.",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [kwargs for _, kwargs in instructions],
    }
    found: Problem = TASK.problem(config(), row, 0)
    return found


def config() -> Any:
    return TASK.Config(task="ifeval", data="x")


def scored(problem: Problem, *replies: str) -> list[Score]:
    scorer = TASK.scorer(config(), ScoringContext(Path()))
    found: list[Score] = scorer([(problem, Reply(text)) for text in replies])
    return found


def test_prompts_and_instructions_strictly_and_loosely() -> None:
    problem = problem_of(("punctuation:no_comma", {}), ("change_case:english_lowercase", {}))
    both, one, loose, none = scored(
        problem,
        "tea is a warm drink that many people like in the morning.",
        "Tea Is A Warm Drink That Many People Like In The Morning.",
        "Sure, here it is:\ntea is a warm drink that many people like in the morning.",
        "",
    )
    assert both.value == 1.0
    assert both.parts["instruction_strict"] == (2, 2)
    assert (one.value, one.parts["instruction_strict"]) == (0.0, (1, 2))
    assert one.why == "change_case:english_lowercase"
    assert (loose.value, loose.parts["prompt_loose"]) == (0.0, (1.0, 1.0))
    assert (none.value, none.parts["instruction_loose"]) == (0.0, (0, 2))


def test_settings_that_a_columnar_file_fills_with_null_are_left_out() -> None:
    settings = {"num_words": 3, "relation": "at least", "num_paragraphs": None}
    problem = problem_of(("length_constraints:number_words", settings))
    assert problem.fields["kwargs"] == [{"num_words": 3, "relation": "at least"}]
    assert [found.value for found in scored(problem, "one two three", "one two")] == [1, 0]


def test_sentences_are_counted_and_it_is_said_how() -> None:
    problem = problem_of(("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}))
    assert [found.value for found in scored(problem, "One. Two! Three?", "One. Two!")] == [1, 0]
    problem = problem_of(
        ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"})
    )
    assert [found.value for found in scored(problem, "I drink TEA and MILK.", "I drink tea.")] == [1, 0]
    assert bool(TASK.notes(config())) != has_sentence_data()


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    TASK.checkers.cache_clear()
    problem = problem_of(("length_constraints:number_sentences", {"num_sentences": 1, "relation": "at least"}))
    assert scored(problem, "One.")[0].value == 1.0
    assert "ownload" not in capfd.readouterr().out


@pytest.mark.skipif(not (REAL_DATA / "ifeval_100.jsonl").is_file(), reason="IFEval is not here (EASYDISTILL_DATA)")
def test_every_kind_of_instruction_is_checked_alike_each_time() -> None:
    rows = [json.loads(line) for line in (REAL_DATA / "ifeval_100.jsonl").read_text().splitlines()]
    problems = [TASK.problem(config(), row, number) for number, row in enumerate(rows)]
    kinds = {kind for problem in problems for kind in problem.fields["instruction_id_list"]}
    assert len(kinds) == 25
    text = "HELLO. This is a *short* text, Bonjour.\n\nP.S. The end [name] <<title>>"
    replies = [(problem, Reply(text)) for problem in problems]
    scorer = TASK.scorer(config(), ScoringContext(Path()))
    first = [score.parts for score in scorer(replies)]
    assert first == [score.parts for score in scorer(replies)]
    followed, asked = (sum(parts["instruction_strict"][side] for parts in first) for side in (0, 1))
    assert 0 < followed < asked


@pytest.mark.parametrize(
    "instruction",
    [
        ("length_constraints:words", {}),
        ("length_constraints:number_words", {"num_words": "three", "relation": "at least"}),
        ("length_constraints:number_words", {"num_words": 3, "relation": "about"}),
        ("punctuation:no_comma", {"unknown": 3}),
    ],
)
def test_instructions_that_the_checkers_do_not_take_are_refused_before_anything_is_asked(
    instruction: tuple[str, dict[str, Any]],
) -> None:
    with pytest.raises(MalformedRow, match="checkers do not take"):
        problem_of(instruction)
