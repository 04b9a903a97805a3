"""Operators that ask models, driven by scripted replies."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from easydistill.contracts.operator import Ask, Reply, Result, answer_with, each
from easydistill.data.records import Sample
from easydistill.errors import DataError
from easydistill.synthesis.operators import (
    OPERATORS,
    cot_generation,
    cot_long2short,
    cot_scoring,
    cot_short2long,
    instruction_expansion,
    instruction_refinement,
    instruction_response_extraction,
    instruction_scoring,
    task_labelling,
)
from easydistill.synthesis.tools import Tools, load_prompt, prompt_issues

WORDS = ("river", "engine", "poem", "planet", "market", "violin", "bridge", "cactus", "island", "lantern", "mirror")


def row(identity: str, prompt: str, answer: str | None = None, **meta: Any) -> Sample:
    said = () if answer is None else ({"role": "assistant", "content": answer},)
    return Sample(identity, ({"role": "user", "content": prompt}, *said), meta)


def replies_by(say: Callable[[Ask], str | Reply], asks: Sequence[Ask]) -> list[Reply]:
    """Scripted replies; a text is a complete reply."""
    said = [say(ask) for ask in asks]
    return [reply if isinstance(reply, Reply) else Reply(reply, finish_reason="stop") for reply in said]


def drive(module: Any, config: Any, rows: Sequence[Sample], say: Callable[[Ask], str | Reply]) -> tuple[Result, list]:
    waves: list[list[Ask]] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        waves.append(list(asks))
        return replies_by(say, asks)

    result = answer_with(module.run(config, rows, Tools(config)), answer)
    assert result.entered == len(result.accepted) + len(result.rejected)
    return result, waves


def reasons(result: Result) -> Counter[str]:
    return Counter(rejection.reason for rejection in result.rejected)


SEEDS = [row("a", "Write a poem about the sea."), row("b", "Explain how rainbows form."), row("c", "What is a verb?")]


def test_each_runs_generators_side_by_side() -> None:
    def steps(item: int) -> Any:
        got = []
        for depth in range(item):
            (reply,) = yield [Ask(({"role": "user", "content": f"{item}.{depth}"},))]
            got.append(reply.text)
        return got

    waves: list[list[str]] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        waves.append([ask.messages[0]["content"] for ask in asks])
        return [Reply(ask.messages[0]["content"].upper()) for ask in asks]

    found = answer_with(each([2, 0, 3], steps), answer)
    assert found == [["2.0", "2.1"], [], ["3.0", "3.1", "3.2"]]
    assert waves == [["2.0", "3.0"], ["2.1", "3.1"], ["3.2"]]


@pytest.mark.parametrize("name", [name for name in OPERATORS.names() if hasattr(OPERATORS.module(name), "PROMPTS")])
def test_every_prompt_exists_in_both_languages(name: str) -> None:
    for prompt in OPERATORS.module(name).PROMPTS:
        for language in ("en", "zh"):
            assert load_prompt(prompt, language).issue() is None


# --- expansion ----------------------------------------------------------------------------------------------


def fresh() -> Callable[[Ask], str]:
    numbers = itertools.count()

    def say(ask: Ask) -> str:
        number = next(numbers)
        first, second, third = WORDS[number % 11], WORDS[number // 11 % 11], WORDS[(3 * number + 1) % 11]
        return f"<instruction>{first.title()} and {second}: tell me item {number} of the {third}</instruction>"

    return say


def test_expansion_reaches_its_target_of_accepted_rows() -> None:
    config = instruction_expansion.Config(num_output_samples=7)
    result, waves = drive(instruction_expansion, config, SEEDS, fresh())
    assert len(result.accepted) == 7
    assert all(found.messages[-1]["role"] == "user" for found in result.accepted)
    assert len({found.id for found in result.accepted}) == 7
    assert set(result.accepted[0].meta["sources"]) <= {"a", "b", "c"}
    assert len(waves[0]) == 7


def test_expansion_stops_at_its_budget_and_counts_every_rejection() -> None:
    replies = itertools.cycle(
        [
            "<instruction>Write a poem about the SEA!</instruction>",
            "<instruction>Go</instruction>",
            "no tags here",
            Reply("<instruction>cut", finish_reason="length"),
            Reply(None, problem=("rate_limit", "HTTP 429")),
        ]
    )
    config = instruction_expansion.Config(num_output_samples=2, budget=5)
    result, _ = drive(instruction_expansion, config, SEEDS, lambda ask: next(replies))
    assert result.accepted == [] and result.entered == 10
    assert reasons(result) == {
        "duplicate": 2, "too_short": 2, "malformed_reply": 2, "truncated": 2, "rate_limit": 2,
    }  # fmt: skip


def test_expansion_is_deterministic_and_counts_surplus_rows() -> None:
    config = instruction_expansion.Config(num_output_samples=3, variant="evolve")
    first, waves = drive(instruction_expansion, config, SEEDS, fresh())
    again, same = drive(instruction_expansion, config, SEEDS[::-1], fresh())
    assert waves == same and first.accepted == again.accepted
    halves = itertools.count()
    say = fresh()
    config = instruction_expansion.Config(num_output_samples=4)
    result, _ = drive(
        instruction_expansion, config, SEEDS, lambda ask: say(ask) if next(halves) not in (0, 1, 2) else "nothing"
    )
    assert len(result.accepted) == 4
    refused = reasons(result)
    assert result.entered == 4 + refused.total()
    assert refused["malformed_reply"] == 3 and set(refused) <= {"malformed_reply", "surplus", "too_similar"}


def test_chinese_seeds_get_a_chinese_prompt() -> None:
    config = instruction_expansion.Config(num_output_samples=1)
    seeds = [row("z", "请写一首关于大海的诗。")]
    result, waves = drive(
        instruction_expansion, config, seeds, lambda ask: "<instruction>请解释彩虹是怎样形成的。</instruction>"
    )
    assert "指令" in waves[0][0].messages[0]["content"] and len(result.accepted) == 1


def test_prompts_can_be_replaced_and_are_checked(tmp_path: Any) -> None:
    own = tmp_path / "own.txt"
    own.write_text("{{ examples[0] }} {{ form }}")
    config = instruction_expansion.Config(num_output_samples=1, prompts={"instruction_expansion": str(own)})
    _, waves = drive(instruction_expansion, config, SEEDS, fresh())
    assert waves[0][0].messages[0]["content"].startswith(("Write", "Explain", "What"))
    own.write_text("{{ broken")
    assert "line 1" in str(prompt_issues(config, instruction_expansion.PROMPTS)[0])
    other = instruction_expansion.Config(prompts={"other": str(own)})
    assert "no such prompt" in str(prompt_issues(other, instruction_expansion.PROMPTS)[0])


def test_expansion_needs_seeds() -> None:
    with pytest.raises(DataError, match="no seed"):
        drive(instruction_expansion, instruction_expansion.Config(), [], fresh())


# --- refinement ---------------------------------------------------------------------------------------------


def test_refinement_keeps_ids_and_rejects_drift_and_lost_numbers() -> None:
    rows = [row("good", "Add 2 to 3"), row("drift", "Sing"), row("lost", "Add 7 to 9"), row("same", "Hello there you")]
    said = {
        "Add 2 to 3": "Add 2 to 3 and show it",
        "Sing": "Dance",
        "Add 7 to 9": "Add them",
        "Hello": "hello there you!",
    }

    def say(ask: Ask) -> str:
        text = ask.messages[0]["content"]
        if ask.role == "judge":
            return f"<same>{0 if 'Dance' in text else 1}</same>"
        return f"<instruction>{next(v for k, v in said.items() if k in text)}</instruction>"

    result, waves = drive(instruction_refinement, instruction_refinement.Config(), rows, say)
    assert [(found.id, found.meta["original"]) for found in result.accepted] == [("good", "Add 2 to 3")]
    assert {found.id: found.reason for found in result.rejected} == {
        "drift": "drift", "lost": "numbers_lost", "same": "unchanged",
    }  # fmt: skip
    assert [ask.role for ask in waves[1]] == ["judge", "judge"]


# --- chains of thought --------------------------------------------------------------------------------------

PROBLEMS = [row(f"p{n}", f"What is {n} + 2?", f"Two more. #### {n + 2}") for n in range(12)]


def test_accepted_chains_equal_an_independent_recount() -> None:
    config = cot_generation.Config(num_samples=3, keep="all")

    def say(ask: Ask) -> str:
        number = int(ask.messages[0]["content"].split()[2])
        return f"Adding. \\boxed{{{number + (2 if (number + ask.index) % 3 else 3)}}}"

    result, _ = drive(cot_generation, config, PROBLEMS, say)
    wanted = [(n, k) for n in range(12) for k in range(3) if (n + k) % 3]
    assert [found.id for found in result.accepted] == [f"p{n}-{k + 1}" for n, k in wanted]
    assert reasons(result) == {"wrong_answer": 36 - len(wanted)}
    assert result.facts["verified_right"] == len(wanted)
    assert {found.meta["pass_rate"] for found in result.accepted} == {round(2 / 3, 4)}
    assert result.accepted[0].messages[0] == PROBLEMS[0].messages[0], "rows train on the problem itself"


def test_the_shortest_chain_is_kept_and_unknown_answers_are_rejected() -> None:
    config = cot_generation.Config(num_samples=2, keep="shortest", verify="required")
    rows = [PROBLEMS[0], row("open", "Why?")]
    result, _ = drive(
        cot_generation, config, rows, lambda ask: "long long way \\boxed{2}" if ask.index == 0 else "\\boxed{2}"
    )
    assert [found.answer for found in result.accepted] == ["\\boxed{2}"]
    assert reasons(result) == {"not_chosen": 1, "answer_unknown": 2}


def test_rewritten_chains_keep_answer_and_length() -> None:
    long = "First we look at it, then we look at it again, and again, and at last we see: #### 5"
    rows = [
        row("ok", "2+3?", long),
        row("wrong", "2+3?", long),
        row("long", "2+3?", long),
        row("none", "2+3?", "who knows"),
    ]
    replies = iter(["Sum: \\boxed{5}", "Sum: \\boxed{6}", long + " " + long, "Sum: \\boxed{5}"])
    result, _ = drive(cot_long2short, cot_long2short.Config(), rows, lambda ask: f"<thought>{next(replies)}</thought>")
    assert [found.id for found in result.accepted] == ["ok"]
    assert result.accepted[0].prompt == rows[0].prompt
    assert {found.id: found.reason for found in result.rejected} == {
        "wrong": "answer_changed", "long": "unfit_length", "none": "answer_unknown",
    }  # fmt: skip
    longer, _ = drive(
        cot_short2long, cot_short2long.Config(), [row("x", "2+3?", "#### 5")], lambda ask: f"<thought>{long}</thought>"
    )
    assert longer.accepted[0].meta["length_ratio"] > 1.3
    with pytest.raises(DataError, match="run cot_generation first"):
        drive(cot_long2short, cot_long2short.Config(), [row("x", "2+3?")], lambda ask: "")


def test_a_chain_that_states_no_answer_keeps_its_last_number() -> None:
    long = "First we look at it, then we look at it again, and again, and at last we see that 2 + 3 = 5"
    rows = [row("ok", "2+3?", long), row("wrong", "2+3?", long)]
    replies = iter(["2 + 3 = 5", "2 + 3 = 6"])
    result, _ = drive(cot_long2short, cot_long2short.Config(), rows, lambda ask: f"<thought>{next(replies)}</thought>")
    assert [found.id for found in result.accepted] == ["ok"] and reasons(result) == {"answer_changed": 1}


# --- judging ------------------------------------------------------------------------------------------------


def test_malformed_scores_are_rejected_rows() -> None:
    rows = [row(str(n), f"Question {n}?", "Because.") for n in range(4)]
    good = "".join(f"<{name}>{top}</{name}>" for name, (_, top) in instruction_scoring.SCORES.items())
    replies = iter(
        [good, "8 out of 9", good.replace(">9<", ">10<", 1), good.replace("<correctness>1", "<correctness>2")]
    )
    result, waves = drive(instruction_scoring, instruction_scoring.Config(), rows, lambda ask: next(replies))
    assert [found.id for found in result.accepted] == ["0"] and reasons(result) == {"malformed_score": 3}
    assert result.accepted[0].meta["informativeness"] == 9
    assert {ask.role for ask in waves[0]} == {"judge"}


def test_known_answers_overrule_the_judge() -> None:
    rows = [
        row("right", "2+3?", "#### 5", reference="5"),
        row("wrong", "2+3?", "#### 6", reference=5),
        row("open", "2?", "6"),
    ]
    result, _ = drive(cot_scoring, cot_scoring.Config(), rows, lambda ask: "<rv>3</rv><cd>4</cd><correct>1</correct>")
    assert [found.meta["correct"] for found in result.accepted] == [1, 0, 1]
    assert result.facts["verified"] == 2 and result.facts["judge_agrees"] == 0.5
    assert result.facts["scores"]["correct"] == {"0": 1, "1": 2}


def test_labels_must_be_in_the_list() -> None:
    rows = [row("a", "2+3?"), row("b", "Sing"), row("c", "Run")]
    replies = iter(["math.", "Singing", ""])
    result, _ = drive(task_labelling, task_labelling.Config(reply="plain"), rows, lambda ask: next(replies))
    assert [(found.id, found.meta["task"]) for found in result.accepted] == [("a", "Math")]
    assert reasons(result) == {"unknown_label": 1, "malformed_reply": 1}


# --- extraction ---------------------------------------------------------------------------------------------

TEXT = (
    "The lighthouse of Alborg was built in 1871 by the engineer Ida Holm. It is forty metres tall and made of granite. "
    "Since 1990 its lamp has been electric, and it can be seen from a distance of thirty kilometres."
)


def pair(question: str, answer: str, evidence: str) -> str:
    return f"<question>{question}</question><answer>{answer}</answer><evidence>{evidence}</evidence>"


def test_pairs_need_evidence_and_stand_alone() -> None:
    chunks = [row(str(n), TEXT) for n in range(5)]
    evidence = "The lighthouse of Alborg was built in 1871 by the engineer Ida Holm."
    question = "When was the lighthouse of Alborg built?"
    replies = iter(
        [
            pair(question, "It was built in 1871.", evidence),
            pair("Who is the mayor?", "It is Ole.", "The mayor of the city is called Ole Hansen today"),
            pair("What does the passage say?", "It was built in 1871.", evidence),
            pair(question, "It was built in 1871.", evidence),
            pair(
                "How tall is the tower at Alborg?",
                "It is 90 feet tall.",
                "It is forty metres tall and made of granite.",
            ),
        ]
    )

    def say(ask: Ask) -> str:
        if ask.role == "judge":
            return "It was built in 1871." if "When" in ask.messages[0]["content"] else "Forty metres."
        return next(replies)

    config = instruction_response_extraction.Config(pairs_per_chunk=1)
    result, waves = drive(instruction_response_extraction, config, chunks, say)
    assert [found.id for found in result.accepted] == ["0-1"]
    assert result.accepted[0].meta["evidence"].startswith("The lighthouse")
    assert {found.id: found.reason for found in result.rejected} == {
        "1-1": "no_evidence", "2-1": "not_standalone", "3-1": "duplicate", "4-1": "not_supported",
    }  # fmt: skip
    assert len(waves[1]) == 2


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("The lighthouse of Alborg", "It was built in 1871.", "not_a_question"),
        (
            "Was it so that it was built in 1871 by Ida Holm?",
            "It was so that it was built in 1871 by Ida Holm.",
            "not_a_question",
        ),
        ("the question", "It was built in 1871.", "malformed_reply"),
        ("When was the lighthouse built?", "The answer.", "malformed_reply"),
        ("阿尔堡的灯塔是哪一年建成的？", "It was built in 1871.", None),
    ],
)
def test_a_question_must_ask_something(question: str, answer: str, reason: str | None) -> None:
    evidence = "The lighthouse of Alborg was built in 1871 by the engineer Ida Holm."
    config = instruction_response_extraction.Config(pairs_per_chunk=1, check_answers=False)
    reply = pair(question, answer, evidence)
    result, _ = drive(instruction_response_extraction, config, [row("0", TEXT)], lambda ask: reply)
    assert [found.reason for found in result.rejected] == ([reason] if reason else [])


def test_each_question_is_given_a_sentence_of_its_own() -> None:
    def say(ask: Ask) -> str:
        asked = ask.messages[0]["content"]
        year = next((year for year in ("1871", "1990") if year in asked), "forty")
        if "Write one question" in asked:
            return {
                "1871": "Who built the lighthouse of Alborg in 1871?",
                "1990": "Since when has its lamp there been electric?",
                "forty": "Of which stone is that tall tower?",
            }[year]
        return f"Alborg had {year}, says the keeper" if ask.role == "teacher" else f"Alborg had {year}."

    config = instruction_response_extraction.Config(pairs_per_chunk=3, evidence="given", reply="plain")
    result, waves = drive(instruction_response_extraction, config, [row("0", TEXT)], say)
    assert reasons(result) == {}
    spans = sorted(found.meta["evidence"] for found in result.accepted)
    assert [span[:6] for span in spans] == ["It is ", "Since ", "The li"]
    assert [len(wave) for wave in waves] == [3, 3, 3]
    for found in result.accepted:
        year = next(word for word in ("1871", "1990", "forty") if word in found.meta["evidence"])
        assert found.answer == f"Alborg had {year}, says the keeper"


def test_with_plain_replies_scores_are_json() -> None:
    config = instruction_refinement.Config(reply="plain")

    def say(ask: Ask) -> str:
        if ask.role == "judge":
            assert ask.schema is not None
            assert '"same"' in ask.messages[0]["content"]
            return '{"same": 1}' if "sea" in ask.messages[0]["content"] else "1"
        assert ask.schema is None
        return (
            "Compose four lines of verse on this: "
            + ask.messages[0]["content"].split("\n")[-1][:9]
            + " sea or rainbows"
        )

    result, _ = drive(instruction_refinement, config, SEEDS[:1], say)
    assert len(result.accepted) == 1
