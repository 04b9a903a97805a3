"""A curriculum round, driven by scripted replies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from tests.unit.synthesis.test_asking import reasons, replies_by, row

from easydistill.contracts.operator import Ask, Reply, Result, answer_with
from easydistill.data.records import Sample
from easydistill.synthesis.operators import tapir
from easydistill.synthesis.tools import Tools

Say = Callable[[Ask], str | Reply]


def fresh(text: str, index: int = 0) -> str:
    """A prompt unlike any other: eight made-up words from a hash."""
    spelled = hashlib.sha256(f"{text} {index}".encode()).hexdigest()
    return " ".join(spelled[at : at + 8] for at in range(0, 64, 8))


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0].strip()


class World:
    """Scripted teacher, judge and student. `gaps` is the judge's gap for instructions that contain a word."""

    def __init__(self, **gaps: float) -> None:
        self.gaps = gaps
        self.asked: list[tuple[str, str]] = []
        self.label = "Writing"
        self.new = fresh
        self.style = lambda answer: f"Step by step. {answer}"

    def __call__(self, ask: Ask) -> str | Reply:
        text = ask.messages[-1]["content"]
        said, kind = self._reply(text, ask)
        self.asked.append((kind, text))
        return said

    def _reply(self, text: str, ask: Ask) -> tuple[str, str]:
        if ask.role == "student":
            return f"STUDENT {text}", "student"
        if "[First answer]" in text:
            about = between(text, "[Instruction]", "[First answer]")
            student_first = "STUDENT" in between(text, "[First answer]", "[Second answer]")
            gap = next((gap for name, gap in self.gaps.items() if name in re.findall(r"\w+", about)), 0)
            scores = (9 - gap, 9) if student_first else (9, 9 - gap)
            return "<first>{}</first><second>{}</second>".format(*scores), "judge"
        if "[Labels]" in text:
            return f"<label>{self.label}</label>", "label"
        if "Write one new instruction of the same kind of task" in text:
            source = between(text, "[Instruction]", "Write one new")
            return f"<instruction>{self.new(source, ask.index)}</instruction>", "expand"
        if "[Answer]" in text and "Rewrite the answer" in text:
            answer = self.style(between(text, "[Answer]", "Rewrite the answer"))
            return f"<rewritten_answer>{answer}</rewritten_answer>", "style"
        return f"ANSWER to {text}", "teacher"

    def count(self, kind: str) -> int:
        return sum(found == kind for found, _ in self.asked)


def examine(world: Say, rows: Sequence[Sample], number: int = 1, known: Sequence[Sample] = (), **config: Any) -> Result:
    made = tapir.Config(**config)
    result = answer_with(tapir.run(made, rows, Tools(made), number, known), partial(replies_by, world))
    assert result.entered == len(result.accepted) + len(result.rejected)
    assert len({found.id for found in (*result.accepted, *result.rejected)}) == result.entered
    return result


def rows_of(count: int, word: str = "easy", **meta: Any) -> list[Sample]:
    return [row(f"{word}{n}", f"Say {word} thing number {n} please", f"ANSWER {n}", **meta) for n in range(count)]


# --- how hard ----------------------------------------------------------------------------------------------------


def test_both_orders_are_averaged() -> None:
    """A judge that gives two points more to the first answer finds no gap on average."""

    def judge(ask: Ask) -> str:
        return "<first>7</first><second>5</second>" if "[First answer]" in ask.messages[-1]["content"] else "STUDENT"

    result = examine(judge, rows_of(1), delta=0.5)
    assert result.facts["hard"] == 0
    assert result.accepted[0].meta["teacher_score"] == result.accepted[0].meta["student_score"] == 6
    assert result.accepted[0].meta["gap"] == 0

    def leaning(ask: Ask) -> str:
        text = ask.messages[-1]["content"]
        if "[First answer]" not in text:
            return "<label>Art</label>" if "[Labels]" in text else "STUDENT says"
        return "<first>4</first><second>9</second>" if "STUDENT" in between(text, "[First answer]", "[Second") else (
            "<first>8</first><second>7</second>"
        )  # fmt: skip

    meta = examine(leaning, rows_of(1), expansions=0).accepted[0].meta
    assert (meta["teacher_score"], meta["student_score"], meta["gap"]) == (8.5, 5.5, 3.0)


def test_a_gap_of_exactly_delta_is_hard() -> None:
    rows = [*rows_of(1, "below"), *rows_of(1, "at"), *rows_of(1, "above")]
    result = examine(World(below=1, at=2, above=5), rows, expansions=0, alpha=1)
    assert {found.id for found in result.accepted} == {"at0", "above0"}
    assert result.facts["gap"]["histogram"] == {"1.0": 1, "2.0": 1, "5.0": 1}
    assert reasons(result) == {"not_drawn": 1}
    assert len(examine(World(below=1, at=2, above=5), rows, expansions=0, alpha=1, delta=2.5).accepted) == 1


@pytest.mark.parametrize(
    "judgement",
    ["7 and 5", "<first>7</first>", "<first>11</first><second>3</second>", "<first>0</first><second>3</second>"],
)
def test_a_malformed_score_in_one_order_is_a_rejection(judgement: str) -> None:
    def world(ask: Ask) -> str:
        text = ask.messages[-1]["content"]
        if "[First answer]" in text:
            second_order = "STUDENT" in between(text, "[First answer]", "[Second")
            return judgement if second_order else "<first>9</first><second>1</second>"
        return "STUDENT"

    result = examine(world, rows_of(2))
    assert reasons(result) == {"malformed_score": 2} and not result.accepted
    assert result.facts["gap"]["mean"] is None


def test_truncated_and_empty_student_answers_are_judged() -> None:
    def world(ask: Ask) -> str | Reply:
        if ask.role == "student":
            cut = "0" in ask.messages[-1]["content"]
            return Reply("half an", finish_reason="length") if cut else Reply(None, problem=("empty_content", "empty"))
        return "<first>5</first><second>5</second>" if "[First answer]" in ask.messages[-1]["content"] else "x"

    assert len(examine(world, rows_of(2)).accepted) == 2


def test_rows_without_an_answer_are_answered_by_the_teacher_first() -> None:
    world = World()
    result = examine(world, [row("a", "Say it"), row("b", "Say that", "KNOWN")])
    assert world.count("teacher") == 1
    assert {found.id: found.answer for found in result.accepted} == {"a": "ANSWER to Say it", "b": "KNOWN"}


# --- new prompts -------------------------------------------------------------------------------------------------


def test_reasoning_tasks_get_more_prompts_and_known_tasks_are_not_labelled() -> None:
    rows = [*rows_of(3, "sum", task="Math"), *rows_of(3, "verse", task="Writing")]
    world = World(sum=4, verse=4)
    result = examine(world, rows, check_task=False, styles={})
    assert result.facts["tasks"] == {
        "Math": {"hard": 3, "asked": 6, "new": 6},
        "Writing": {"hard": 3, "asked": 3, "new": 3},
    }
    assert world.count("label") == 0 and world.count("teacher") == 9
    new = [found for found in result.accepted if "expanded_from" in found.meta]
    assert all(found.meta["round"] == 1 and found.answer.startswith("ANSWER to") for found in new)
    assert all(found.meta["task"] == ("Math" if "sum" in found.meta["expanded_from"] else "Writing") for found in new)


def test_half_an_expansion_is_one_for_about_half_the_rows() -> None:
    rows = rows_of(200, "verse", task="Art")
    asked = examine(World(verse=4), rows, expansions=0.5, check_task=False).facts["tasks"]["Art"]["asked"]
    assert 70 < asked < 130


def test_prompts_of_another_task_and_duplicates_are_rejected() -> None:
    rows = [row("a", "Say hard thing one now", "A", task="Math"), row("b", "Say hard thing two now", "B", task="Math")]
    world = World(hard=5)
    world.label = "History"
    assert reasons(examine(world, rows, styles={}))["left_task"] == 4
    world.label = "Math"
    world.new = lambda text, index: "Say hard thing one now!"
    assert reasons(examine(world, rows, styles={}))["duplicate"] == 4
    world.new = lambda text, index: "What is kept apart stays apart"
    assert reasons(examine(world, rows, styles={}))["duplicate"] == 3
    kept_apart = [row("h", "What is kept apart stays apart", "H")]
    assert reasons(examine(world, rows, known=kept_apart, styles={}))["duplicate"] == 4


def test_rounds_draw_other_samples() -> None:
    rows = rows_of(1, "verse", task="Art")
    asked: list[int] = []

    def watch(ask: Ask) -> str | Reply:
        if "Write one new" in ask.messages[-1]["content"]:
            asked.append(ask.index)
        return World(verse=4)(ask)

    ids = [{found.id for found in examine(watch, rows, number=n, check_task=False).accepted} for n in (1, 2)]
    assert len(set(asked)) == 2 and ids[0] & ids[1] == {"verse0"}


# --- styles ------------------------------------------------------------------------------------------------------


def test_a_rewriting_with_another_final_answer_is_rejected() -> None:
    rows = [row("a", "Work hard: what is 2 + 2?", r"It is \boxed{4}.", task="Math")]
    world = World(hard=5)
    world.style = lambda answer: r"Two and two make \boxed{4}."
    result = examine(world, rows, expansions=0)
    assert result.accepted[0].answer == r"Two and two make \boxed{4}." and result.accepted[0].meta["style"] == "cot"
    world.style = lambda answer: r"Two and two make \boxed{5}."
    assert reasons(examine(world, rows, expansions=0)) == {"answer_changed": 1}
    world.style = lambda answer: "Thus it is proved."
    assert reasons(examine(world, rows, expansions=0)) == {"no_final_answer": 1}


def test_styles_go_by_task_and_code_stays_code() -> None:
    rows = [
        row("code", "Do the hard sort", "```python\nsorted(x)\n```", task="Code Generation"),
        row("verse", "Do the hard verse", "A verse.", task="Art"),
    ]
    world = World(hard=5)
    result = examine(world, rows, expansions=0)
    assert {found.id: found.meta.get("style") for found in result.accepted} == {"code": "commented_code", "verse": None}
    assert next(found.answer for found in result.accepted if found.id == "verse") == "A verse."
    world.style = lambda answer: "Sort it."
    assert reasons(examine(world, rows, expansions=0)) == {"code_lost": 1}


def test_a_row_that_has_its_style_is_not_rewritten_again() -> None:
    world = World(hard=5)
    examine(world, [row("a", "Do the hard sum", "4", task="Math", style="cot")], expansions=0)
    assert world.count("style") == 0


# --- the mix -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "rest"), [(1, 14), (2, 6), (3, 2), (4, 0), (9, 0)])
def test_the_share_of_hard_rows_grows_by_round(number: int, rest: int) -> None:
    rows = [*rows_of(6, "hard", task="Art"), *rows_of(100)]
    result = examine(World(hard=5), rows, number=number, expansions=0, alpha_step=0.25 if number == 4 else 0.2)
    mix = result.facts["mix"]
    assert (mix["hard"], mix["new"], mix["rest"]) == (6, 0, rest)
    assert mix["share"] >= result.facts["alpha"] > 6 / (6 + rest + 1)
    assert reasons(result) == {"not_drawn": 100 - rest}


def test_there_are_at_most_as_many_others_as_available() -> None:
    result = examine(World(hard=5), [*rows_of(6, "hard", task="Art"), *rows_of(2)], expansions=0)
    assert result.facts["mix"] == {"hard": 6, "new": 0, "rest": 2, "share": 0.75}
    assert len({found.id for found in result.accepted}) == len(result.accepted) == 8


def test_without_hard_rows_the_round_is_the_others() -> None:
    assert len(examine(World(), rows_of(5), number=3).accepted) == 5


def test_if_every_hard_row_is_rejected_the_round_is_empty() -> None:
    world = World(hard=5)
    world.label = "Cookery"
    result = examine(world, [*rows_of(2, "hard"), *rows_of(5)])
    assert not result.accepted and reasons(result) == {"unknown_label": 2, "not_drawn": 5}


def test_draws_do_not_depend_on_the_order_of_rows() -> None:
    rows = [*rows_of(4, "hard"), *rows_of(30)]
    world = World(hard=5)
    # All rows give the same new prompt: which row keeps it must not depend on the order either.
    world.new = lambda text, index: "Write about one odd river in ten lines"
    one, other = examine(world, rows), examine(world, rows[::-1])
    assert {found.id for found in one.accepted} == {found.id for found in other.accepted}
    assert one.facts == other.facts and one.facts["mix"]["new"] == 1


def test_the_same_seed_draws_nested_rows_and_another_seed_others() -> None:
    rows = rows_of(50)
    few, many = tapir.draw(rows, 10, 0), tapir.draw(rows, 20, 0)
    assert {found.id for found in few} < {found.id for found in many}
    assert {found.id for found in tapir.draw(rows, 10, 1)} != {found.id for found in few}


def test_shares_are_exact() -> None:
    assert tapir.Config().share_of(3) == Fraction(7, 10)
    assert tapir.others(3, tapir.Config().share_of(1)) == 7
    assert tapir.Config().share_of(6) == 1


def test_the_number_of_rounds_is_not_part_of_the_identity() -> None:
    assert tapir.Config(rounds=2).identity() == tapir.Config(rounds=5).identity()
    with pytest.raises(ValueError, match="no label"):
        tapir.Config(styles={"Maths": "cot"})


def test_chinese_rows_are_asked_about_in_chinese() -> None:
    asked: list[str] = []

    def world(ask: Ask) -> str:
        text = ask.messages[-1]["content"]
        asked.append(text)
        if "【第一个回答】" in text:
            return "<first>9</first><second>1</second>" if "好" in between(text, "【第一个", "【第二个") else (
                "<first>1</first><second>9</second>"
            )  # fmt: skip
        if "【标签】" in text:
            return "<label>Math</label>"
        if "请写出一条同一任务类别" in text:
            return "<instruction>请计算三个苹果加五个梨一共有多少个水果</instruction>"
        return "<rewritten_answer>一步一步地想，好，答案是8</rewritten_answer>" if "逐步推理" in text else "海，答案是8"

    result = examine(world, [row("a", "请写一首关于大海的诗", "好")], expansions=0.5)
    assert result.facts["hard"] == 1 and {found.meta["style"] for found in result.accepted} == {"cot"}
    assert {found.meta["task"] for found in result.accepted} == {"Math"} and len(result.accepted) == 2
