"""Tasks of the job `evaluate`: what models are asked, and what replies are worth."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.conftest import REAL_DATA, ROOT

from easydistill.contracts.task import TASK, Problem, Reply, Score, ScoringContext, TaskConfig
from easydistill.data.row_files import MalformedRow
from easydistill.errors import DataError
from easydistill.task_evaluation.exams import exam_of
from easydistill.tasks import TASKS, custom, math500
from easydistill.tasks.custom import chosen_letter
from easydistill.tasks.humaneval import program
from easydistill.tasks.livecodebench import same_output, unpacked

ADD = {
    "task_id": "Own/0",
    "prompt": 'from typing import List\n\n\ndef helper(x: int) -> int:\n    return x + 1\n\n\ndef add(values: List[int]) -> int:\n    """Sum of the values, each plus one.\n\n    >>> add([1, 2])\n    5\n    """\n',
    "entry_point": "add",
    "canonical_solution": "    return sum(helper(value) for value in values)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 5\n    assert candidate([]) == 0\n",
}


def make(task: str, row: dict[str, Any], number: int = 0, **settings: Any) -> tuple[Any, TaskConfig, Problem]:
    module: Any = TASKS.module(task)
    config = module.Config(task=task, data="rows.jsonl", **settings)
    return module, config, module.problem(config, row, number)


def score(task: str, row: dict[str, Any], replies: Sequence[str], **settings: Any) -> list[Score]:
    module, config, problem = make(task, row, **settings)
    scorer = module.scorer(config, ScoringContext(Path()))
    try:
        return list(scorer([(problem, Reply(text)) for text in replies]))
    finally:
        scorer.close()


def values(found: Sequence[Score]) -> list[float]:
    return [item.value for item in found]


# --- mathematics --------------------------------------------------------------------------------------------------


def test_gsm8k_compares_the_final_number() -> None:
    row = {"question": "A hen lays 3 eggs a day. How many in 6 days?", "answer": "3*6=<<3*6=18>>18 eggs\n#### 18"}
    replies = ["So it is 18.", "\\boxed{18}", "#### 18", "It is 3 times 6 = 17", "", "\\boxed{18.0}", "eighteen"]
    found = score("gsm8k", row, replies)
    assert values(found) == [1, 1, 1, 0, 0, 1, 0]
    assert (found[3].answer, found[3].why) == ("17", "another answer")
    assert found[4].why == "no final answer" or "empty" in found[4].why


def test_gsm8k_shows_worked_examples_without_the_calculator_notes() -> None:
    row = {"question": "How many?", "answer": "There are 2+2=<<2+2=4>>4.\n#### 4"}
    module, config, _ = make("gsm8k", row)
    assert module.demonstration(config, row) == "There are 2+2=4.\n\n\\boxed{4}"


def test_math500_takes_the_answer_or_the_box_of_the_solution() -> None:
    solution = {"problem": "Find x.", "solution": "Thus $x=\\boxed{\\frac{1}{2}}$."}
    assert values(score("math500", solution, ["\\boxed{0.5}", "x = 1/2", "\\boxed{2}"])) == [1, 1, 0]
    stated = {"problem": "Find x.", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "unique_id": "a/1"}
    assert values(score("math500", stated, ["\\boxed{(3, \\pi/2)}", "\\boxed{(3, \\pi)}"])) == [1, 0]
    assert make("math500", stated)[2].id == "a/1"


def test_aime_samples_several_replies() -> None:
    _, config, problem = make("aime", {"problem": "Find n.", "answer": 73})
    assert (config.samples, config.temperature, config.top_p, config.max_new_tokens) == (8, 0.6, 0.95, 16_384)
    assert problem.reference == "73"
    assert values(score("aime", {"problem": "Find n.", "answer": "073"}, ["\\boxed{73}", "\\boxed{37}"])) == [1, 0]


def test_rows_of_another_form_are_refused_with_what_they_lack() -> None:
    for task, row in (
        ("gsm8k", {"prompt": "x"}),
        ("math500", {"problem": "x"}),
        ("ifeval", {"prompt": "x", "instruction_id_list": ["a", "b"], "kwargs": [{}]}),
        ("mbpp", {"text": "x", "test_list": []}),
        ("humaneval", {"prompt": "x", "entry_point": "f"}),
        ("livecodebench", {"question_content": "x", "public_test_cases": "[]", "private_test_cases": ""}),
    ):
        settings = {"allow_execution": True} if task in {"mbpp", "humaneval", "livecodebench"} else {}
        with pytest.raises(MalformedRow):
            make(task, row, **settings)


# --- programs -----------------------------------------------------------------------------------------------------


def test_humaneval_takes_functions_and_bodies() -> None:
    whole = "def add(values):\n    return sum(values) + len(values)"
    replies = [
        f"```python\n{ADD['prompt']}{ADD['canonical_solution']}```",
        ADD["canonical_solution"],
        f"\n   \n{ADD['canonical_solution']}",
        "return sum(helper(value) for value in values)",
        f"Here it is:\n```python\n{whole}\n```\nIt adds.",
        "```python\ndef add(values: List[int]) -> int:\n    return sum(helper(v) for v in values)\n```",
        "",
        "I cannot do that.",
        "```python\ndef add(values):\n    return 5\n```",
        "```python\ndef check(candidate):\n    pass\ndef add(values):\n    return 1\n```",
        "```python\nimport sys\nsys.exit(0)\n```",
        "```python\ndef add(values):\n    while True: pass\n```",
    ]
    found = score("humaneval", ADD, replies, allow_execution=True, seconds=2.0)
    assert values(found) == [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert found[6].why == "no program"


def test_humaneval_takes_the_function_and_not_the_example_behind_it() -> None:
    right = "def add(values):\n    return sum(map(helper, values))"
    wrong = "def add(values):\n    return 0"
    replies = [
        f"```python\n{right}\n```\nIt is used so:\n```python\nprint(add([1, 2]))\n```",
        f"```python\n{wrong}\n```\nNo, better:\n```python\n{right}\n```",
        f"```python\n{right}\n```\nOr simpler:\n```python\n{wrong}\n```",
    ]
    assert values(score("humaneval", ADD, replies, allow_execution=True)) == [1, 1, 0]


def test_humaneval_keeps_what_stands_before_the_function() -> None:
    _, _, problem = make("humaneval", ADD, allow_execution=True)
    made = program(problem, Reply("```python\ndef add(values: List[int]) -> int:\n    return helper(0)\n```"))
    assert made is not None
    assert made.startswith("from typing import List")
    assert made.count("def add") == 1 and "def helper" in made


def test_programs_need_consent() -> None:
    with pytest.raises(ValueError, match="unreviewed programs"):
        TASKS.module("humaneval").Config(task="humaneval", data="x")
    assert TASKS.module("custom").Config(task="custom", data="x", score="choice")


def test_mbpp_passes_with_all_assertions() -> None:
    row = {
        "task_id": 7,
        "text": "Write a function to double a number.",
        "test_list": ["assert double(2) == 4", "assert double(LARGE) == 200"],
        "test_setup_code": "LARGE = 100",
        "code": "def double(x):\n    return 2 * x",
    }
    replies = ["```python\ndef double(x):\n    return 2 * x\n```", "```python\ndef double(x):\n    return 4\n```", ""]
    assert values(score("mbpp", row, replies, allow_execution=True)) == [1, 0, 0]
    _, config, problem = make("mbpp", row, allow_execution=True)
    assert "assert double(2) == 4" in problem.messages[0]["content"]
    assert problem.id == "7" and problem.text == row["text"]
    assert TASKS.module("mbpp").demonstration(config, row) == f"```python\n{row['code']}\n```"


def packed(tests: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def contest(tests: Any, **more: Any) -> dict[str, Any]:
    row = {
        "question_content": "Print the sum.",
        "question_id": "c1",
        "contest_date": "2024-09-01T00:00:00",
        "starter_code": "",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": packed(tests),
        "metadata": "{}",
    }
    return row | more


def test_livecodebench_reads_and_prints() -> None:
    row = contest([{"input": "10 5", "output": "15.0", "testtype": "stdin"}])
    adds = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    found = score("livecodebench", row, [adds, "```python\nprint(3)\n```", ""], allow_execution=True)
    assert values(found) == [1, 0, 0]
    assert found[1].why.startswith("test 2 of 2")


def test_livecodebench_calls_functions() -> None:
    tests = [{"input": "[1, 2, 3]\n2", "output": "[[1, 2], [3]]", "testtype": "functional"}]
    starter = "class Solution:\n    def cut(self, values: List[int], size: int):\n        "
    row = contest(tests, public_test_cases="[]", metadata=json.dumps({"func_name": "cut"}), starter_code=starter)
    right = (
        "```python\nclass Solution:\n    def cut(self, values: List[int], size: int):\n"
        "        return [tuple(values[i:i + size]) for i in range(0, len(values), size)]\n```"
    )
    wrong = right.replace("i:i + size", "i:i + 1")
    assert values(score("livecodebench", row, [right, wrong], allow_execution=True)) == [1, 0]
    assert "class Solution" in make("livecodebench", row, allow_execution=True)[2].messages[0]["content"]


class _Malicious:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.made),))


def test_packed_tests_are_texts_and_nothing_else(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for value in (_Malicious(made), [_Malicious(made)], Path("x"), {"a": 1}, 7, [print]):
        text = base64.b64encode(zlib.compress(pickle.dumps(value))).decode()
        with pytest.raises(MalformedRow):
            unpacked(text)
    assert not made.exists()
    pickle.loads(pickle.dumps(_Malicious(made)))
    assert made.exists(), "an ordinary unpickler does what it is told"


def test_packed_tests_that_are_broken_are_refused() -> None:
    assert unpacked(packed([{"a": "ü"}])) == '[{"a": "\\u00fc"}]'
    for text in ("", "not base64!", base64.b64encode(b"plain").decode(), packed([])[:-8]):
        with pytest.raises(MalformedRow):
            unpacked(text)


def test_livecodebench_takes_contests_of_a_window() -> None:
    module: Any = TASKS.module("livecodebench")

    def chosen(day: str, **window: str) -> bool:
        config = module.Config(task="livecodebench", data="x", allow_execution=True, **window)
        return bool(module.chosen(config, {"contest_date": day}))

    assert chosen("2024-08-01T10:00:00", start_date="2024-08-01")
    assert not chosen("2024-07-31", start_date="2024-08-01")
    assert chosen("2024-12-31", end_date="2024-12-31") and not chosen("2025-01-01", end_date="2024-12-31")
    config = module.Config(task="livecodebench", data="x", allow_execution=True, release="v6", start_date="2024-08-01")
    assert module.notes(config) == ["release v6, contests from 2024-08-01 to the last"]
    with pytest.raises(ValueError, match="after end_date"):
        module.Config(
            task="livecodebench", data="x", allow_execution=True, start_date="2025-01-01", end_date="2024-01-01"
        )


def test_outputs_are_equal_by_line_and_number() -> None:
    assert same_output("1 2\n3", " 1 2 \n3\n\n")
    assert same_output("0.50", "0.5")
    assert not same_output("1 2", "1\n2")
    assert not same_output("a", "b") and not same_output("1", "") and not same_output("1", "1e999999999x")


# --- own rows -----------------------------------------------------------------------------------------------------


def test_choices_are_lettered_and_compared() -> None:
    row = {"question": "Which is a bird?", "choices": ["cat", "wren", "frog"], "answer": "B"}
    replies = [
        "\\boxed{B}",
        "The answer is B.",
        "B",
        "(b)",
        "B. wren",
        "wren",
        "\\boxed{A}",
        "A bird is B, I think",
        "",
    ]
    found = score("custom", row, replies, score="choice")
    assert values(found) == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    prompt = make("custom", row, score="choice")[2].messages[-1]["content"]
    assert "A. cat\nB. wren\nC. frog" in prompt
    for answer in ("wren", 1, "b", "(B)"):
        assert make("custom", {**row, "answer": answer}, score="choice")[2].reference == "B"
    for answer in ("dog", 3, -1, None, True, "D"):
        with pytest.raises(MalformedRow):
            make("custom", {**row, "answer": answer}, score="choice")


def test_a_letter_is_that_of_a_choice_even_if_another_choice_reads_so() -> None:
    """Models are asked for the letter, so one that does as it is told is not read as if it had quoted a text."""
    assert chosen_letter("\\boxed{A}", ["B", "A"]) == "A"
    assert chosen_letter("nothing", ["x", "y"]) is None
    row = {"question": "Which vitamin?", "choices": ["B", "A"]}
    assert make("custom", {**row, "answer": 1}, score="choice")[2].reference == "B"
    for ambiguous in ({**row, "answer": "A"}, {**row, "choices": ["x", "x"], "answer": "x"}):
        with pytest.raises(MalformedRow, match="several of the choices"):
            make("custom", ambiguous, score="choice")


@pytest.mark.parametrize(
    "reply",
    [
        "**B**",
        "**B. Paris**",
        "(B) Paris",
        "\\boxed{(B) Paris}",
        "The answer is (B) Paris.",
        "The answer is option B.",
        "Option B",
        "B\n\nBecause it is the capital.",
    ],
)
def test_choices_are_stated_in_many_ways(reply: str) -> None:
    assert chosen_letter(reply, ["Rome", "Paris", "Oslo"]) == "B"


@pytest.mark.parametrize("reply", ["A dog, so B", "Because", "B2", "All of them", "A.M."])
def test_what_is_no_choice_is_none(reply: str) -> None:
    assert chosen_letter(reply, ["Rome", "Paris", "Oslo"]) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "Sum:", "input": "1 2 3"}, [("user", "Sum:\n\n1 2 3")]),
        ({"question": "How many?", "context": "Bob has 6."}, [("user", "How many?\n\nBob has 6.")]),
        ({"system": "Short.", "prompt": "6?"}, [("system", "Short."), ("user", "6?")]),
        (
            {"system": "Short.", "messages": [{"role": "user", "content": "6?"}]},
            [("system", "Short."), ("user", "6?")],
        ),
        (
            {"prompt": "And 6?", "history": [["Hi", "Yes"]]},
            [("user", "Hi"), ("assistant", "Yes"), ("user", "And 6?")],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "6?"}]}]}, [("user", "6?")]),
    ],
)
def test_own_rows_are_asked_whole(row: dict[str, Any], said: list[tuple[str, str]]) -> None:
    problem = make("custom", {**row, "answer": 6}, score="verify")[2]
    assert [(message["role"], message["content"]) for message in problem.messages] == said


@pytest.mark.parametrize(
    "more",
    [
        {"image": "cat.png"},
        {"images": ["a.png", "b.png"]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"messages": [{"role": "user", "content": " "}]},
    ],
)
def test_own_rows_that_would_not_be_asked_whole_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(MalformedRow):
        make("custom", {"prompt": "What is it?", "answer": 6, **more}, score="verify")


def test_own_rows_without_a_prompt_or_an_answer_say_what_they_have() -> None:
    with pytest.raises(MalformedRow, match="'instruction'; it has text, answer"):
        make("custom", {"text": "6?", "answer": 6}, score="verify")
    with pytest.raises(MalformedRow, match="no answer in 'answer'"):
        make("custom", {"prompt": "6?", "answer": float("nan")}, score="verify")


def test_ids_that_were_given_twice_are_told_apart(tmp_path: Path) -> None:
    """Two problems of one id would count as one with two replies."""
    path = tmp_path / "rows.jsonl"
    ids = ["a", "a", "a#2", "a#2", "a"]
    path.write_text("".join(json.dumps({"id": i, "prompt": f"{n}?", "answer": 1}) + "\n" for n, i in enumerate(ids)))
    config = custom.Config(task="custom", data=str(path), score="verify")
    found = [problem.id for problem in exam_of(config).problems()]
    assert found[:2] == ["a", "a#2"] and len(set(found)) == len(ids)


def test_images_of_rows_are_not_left_out_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "How long is AB in the picture?", "answer": "5", "image": "t.png"}) + "\n")
    config = math500.Config(task="math500", data=str(path))
    with pytest.raises(DataError, match=r"row 1.*'image'"):
        exam_of(config).problems()


def test_own_rows_are_verified() -> None:
    row = {"id": "q1", "prompt": "6 × 7?", "result": "42"}
    assert values(score("custom", row, ["It is 42", "41"], score="verify", field="result")) == [1, 0]
    chat = {"messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": "6 × 7?"}], "answer": 42}
    assert [m["role"] for m in make("custom", chat, score="verify")[2].messages] == ["system", "user"]
    for broken in ({"messages": [{"role": "assistant", "content": "x"}], "answer": "1"}, {"prompt": "x"}):
        with pytest.raises(MalformedRow):
            make("custom", broken, score="verify")


def test_own_programs_are_run() -> None:
    row = {"prompt": "Double.", "tests": ["assert f(1) == 2", "assert f(4) == 8"]}
    replies = ["```python\ndef f(x): return 2 * x\n```", "```python\ndef f(x): return 2\n```", ""]
    assert values(score("custom", row, replies, score="code", allow_execution=True)) == [1, 0, 0]
    with pytest.raises(MalformedRow):
        make("custom", {"prompt": "x", "tests": []}, score="code", allow_execution=True)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"score": "choice", "judge": {}}, "judge is not used"),
        ({"score": "judge", "field": "x"}, "field is not used"),
        ({"score": "verify", "seconds": 3}, "seconds is not used"),
        ({"score": "verify", "samples": 2}, "greedy replies"),
        ({"score": "verify", "pass_at": [2]}, "pass@2"),
        ({"score": "verify", "shots": 2}, "shots and shots_data"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        TASKS.module("custom").Config(task="custom", data="x", **settings)


# --- public data --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "humaneval.jsonl").is_file(), reason="HumanEval is not here (EASYDISTILL_DATA)")
def test_reference_solutions_of_humaneval_pass_and_empty_replies_fail() -> None:
    module: Any = TASKS.module("humaneval")
    config = module.Config(task="humaneval", data="x", allow_execution=True)
    rows = [json.loads(line) for line in (REAL_DATA / "humaneval.jsonl").read_text().splitlines()]
    problems = [module.problem(config, row, number) for number, row in enumerate(rows)]
    scorer = module.scorer(config, ScoringContext(Path()))
    solved = [Reply(f"```python\n{row['prompt']}{row['canonical_solution']}\n```") for row in rows]
    bodies = [Reply(row["canonical_solution"]) for row in rows]
    for replies, expected in ((solved, 1.0), (bodies, 1.0), ([Reply("")] * len(rows), 0.0)):
        found = scorer(list(zip(problems, replies, strict=True)))
        assert [item.value for item in found] == [expected] * 164


@pytest.mark.skipif(not (REAL_DATA / "gsm8k_test.jsonl").is_file(), reason="GSM8K is not here (EASYDISTILL_DATA)")
def test_gsm8k_solutions_are_right() -> None:
    module: Any = TASKS.module("gsm8k")
    config = module.Config(task="gsm8k", data="x")
    rows = [json.loads(line) for line in (REAL_DATA / "gsm8k_test.jsonl").read_text().splitlines()]
    problems = [module.problem(config, row, number) for number, row in enumerate(rows)]
    scorer = module.scorer(config, ScoringContext(Path()))
    replies = [(problem, Reply(module.demonstration(config, row))) for problem, row in zip(problems, rows, strict=True)]
    try:
        assert sum(item.value for item in scorer(replies)) == len(rows) == 1319
    finally:
        scorer.close()


# --- tasks of others ----------------------------------------------------------------------------------------------


def test_the_task_in_the_documents_is_one() -> None:
    text = (ROOT / "docs/tasks.md").read_text()
    source = text.split("## A task of your own")[1].split("```python\n")[1].split("```")[0]
    module = ModuleType("says")
    exec(compile(source, "docs/tasks.md", "exec", dont_inherit=True), module.__dict__)
    assert TASK.complete("says", module) == []
    config = module.Config(task="says", data="x")
    problem = module.problem(config, {"prompt": "Say tea.", "word": "tea"}, 4)
    scorer = module.scorer(config, ScoringContext(Path()))
    assert values(scorer([(problem, Reply("tea!")), (problem, Reply("coffee"))])) == [1, 0]
    assert problem.id == "4" and module.notes(config) == [] and module.chosen(config, {})
    assert TASK.complete("other", module) == [
        '`Config.task` must be Literal["other"], the name that it is registered under'
    ]
    del module.scorer
    assert "it declares no `scorer" in TASK.complete("says", module)[0]
