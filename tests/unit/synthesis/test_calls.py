"""Operators on rows that call tools: calls count in what is compared, judged and asked, and none is lost."""

from __future__ import annotations

from typing import Any

from easydistill.contracts.operator import Ask, Reply, answer_with
from easydistill.data.messages import Message
from easydistill.data.records import Sample
from easydistill.synthesis.chains import known_answer
from easydistill.synthesis.difficulty import judge_row
from easydistill.synthesis.operators import cot_long2short, deduplicate, instruction_scoring
from easydistill.synthesis.operators.decontaminate import texts_of
from easydistill.synthesis.operators.tapir.styles import restyle
from easydistill.synthesis.replies import answered
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER: Message = {"role": "user", "content": "Count the legs of the spider, please."}
RESULT: Message = {"role": "tool", "content": "There are eight of them.", "tool_call_id": "c1"}


def calling(value: int, **more: Any) -> Message:
    call = {"id": "c1", "name": "f", "arguments": {"a": value}}
    return {"role": "assistant", "content": "", "tool_calls": [call], **more}  # type: ignore[typeddict-item]


def row(name: str, *messages: Message) -> Sample:
    return Sample(name, messages, {}, tools=(TOOL,))


def test_answers_that_call_otherwise_are_no_duplicates() -> None:
    one, same, other = (row(name, USER, calling(value)) for name, value in (("a", 1), ("b", 1), ("c", 222222)))
    config = deduplicate.Config(compare="answer", near_duplicate=1.0, too_similar=1.0)
    result = deduplicate.deduplicate(config, [one, same, other])
    assert [kept.id for kept in result.accepted if kept.id == "c"] == ["c"] and len(result.accepted) == 2


def test_a_prompt_s_calls_and_results_are_part_of_it() -> None:
    assert prompt_text(row("a", USER, calling(1), RESULT)) == (
        'Count the legs of the spider, please.\nf({"a": 1})\nThere are eight of them.'
    )


def test_all_that_a_row_says_is_checked_for_contamination() -> None:
    whole = row("a", USER, calling(1, reasoning_content="Hm."), RESULT, {"role": "assistant", "content": "Eight."})
    assert texts_of(whole) == [USER["content"], RESULT["content"], "Eight.", "Hm.", 'f({"a": 1})']


def test_chains_are_not_made_of_calls() -> None:
    config = cot_long2short.Config(require_answer=False)
    bare, thought = row("a", USER, calling(1)), row("b", USER, calling(1, reasoning_content="One two three four."))
    asked: list[Ask] = []

    def reply(asks: Any) -> list[Reply]:
        asked.extend(asks)
        return [Reply("<thought>One.</thought>", key="k") for _ in asks]

    result = answer_with(cot_long2short.run(config, [bare, thought], Tools(config)), reply)
    (rejected,) = result.rejected
    assert (rejected.id, rejected.reason) == ("a", "no_chain") and len(asked) == 1
    (kept,) = result.accepted
    # The thoughts are rewritten, and the calls are the same.
    assert kept.messages[-1] == calling(1, reasoning_content="One.")
    assert known_answer(bare) is None


def test_calls_are_put_in_no_style() -> None:
    called = row("a", USER, calling(1))
    called.meta["task"] = "Math"
    steps = restyle("tapir", {"Math": "cot"}, "tags", [called], Tools(cot_long2short.Config()))
    assert answer_with(steps, lambda asks: []) == [called]


def test_questions_about_a_row_bring_its_tools_and_answers_their_calls() -> None:
    asked: list[Ask] = []

    def reply(asks: Any) -> list[Reply]:
        asked.extend(asks)
        if asks[0].role == "judge":
            return [Reply("<first>5</first><second>5</second>", key="j") for _ in asks]
        return [Reply("", key="t", tool_calls=({"name": "f", "arguments": {"a": 1}},)) for _ in asks]

    config = instruction_scoring.Config()
    judged = answer_with(judge_row("tapir", config, row("a", USER), Tools(config)), reply)
    teacher, student, *judges = asked
    assert teacher.tools == student.tools == (TOOL,)
    assert all('f({"a": 1})' in ask.messages[-1]["content"] for ask in judges)
    assert judged.row.messages[-1]["tool_calls"] == [{"name": "f", "arguments": {"a": 1}}]
    assert answered(row("a", USER), Reply("Yes.")).messages[-1] == {"role": "assistant", "content": "Yes."}
