"""The CogPO operator, driven by scripted replies."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.synthesis.test_asking import drive, reasons, row

from easydistill.contracts.operator import Ask, Reply, Result
from easydistill.data.records import Sample
from easydistill.data.writing import as_preference
from easydistill.synthesis.chains import known_answer
from easydistill.synthesis.operators import cogpo, cot_generation
from easydistill.synthesis.operators.cogpo.student_tries import certainly_wrong
from easydistill.verification.answers import find_answer

LONG = "We add the two numbers step by step, the first one and then the second one, and count on our fingers."


def kind_of(ask: Ask) -> str:
    text = ask.messages[-1]["content"]
    if ask.role == "student":
        return "shown" if "Here is a solution" in text else "alone"
    if ask.role == "judge":
        return "critic" if "Choose one label" in text else "derive"
    if "learner can follow" in text:
        return "extend"
    return "simplify" if "much shorter" in text else "teacher"


def numbers_of(ask: Ask) -> tuple[int, int]:
    found = re.search(r"What is (\d+) \+ (\d+)", ask.messages[-1]["content"])
    assert found is not None
    return int(found[1]), int(found[2])


class World:
    """Scripted teacher, judge and student; counts requests by kind. By default all chains suit the student, which is
    always wrong."""

    def __init__(self, **say: Callable[[Ask, int, int], str | Reply]) -> None:
        self.asked: Counter[str] = Counter()
        self.say = {
            "teacher": lambda ask, a, b: f"{a} plus {b} is \\boxed{{{a + b}}}",
            "alone": lambda ask, a, b: f"I guess it is \\boxed{{{a + b + 1 + ask.index}}}",
            "shown": lambda ask, a, b: f"\\boxed{{{a + b}}}",
            "critic": lambda ask, a, b: "<label>medium</label>",
            "derive": lambda ask, a, b: f"<answer>{a + b}</answer>",
            "extend": lambda ask, a, b: f"<thought>{LONG} Extended {ask.index}: \\boxed{{{a + b}}}</thought>",
            "simplify": lambda ask, a, b: f"<thought>\\boxed{{{a + b}}}</thought>",
            **say,
        }

    def __call__(self, ask: Ask) -> str | Reply:
        kind = kind_of(ask)
        self.asked[kind] += 1
        return self.say[kind](ask, *numbers_of(ask))


def problem(number: int, **meta: Any) -> Sample:
    return row(f"p{number}", f"What is {number} + 2?", f"{number} plus 2. #### {number + 2}", **meta)


def made(world: Callable[[Ask], str | Reply], rows: Sequence[Sample], **config: Any) -> Result:
    result, _ = drive(cogpo, cogpo.Config(**config), rows, world)
    return result


def first_easy(ask: Ask, a: int, b: int) -> str:
    return f"<label>{'medium' if 'Extended' in ask.messages[-1]['content'] else 'easy'}</label>"


def test_a_suitable_chain_makes_large_gaps_and_an_sft_row() -> None:
    world = World()
    result = made(world, [problem(1)])
    assert [(pair.meta["gap"], pair.meta["beta"]) for pair in result.accepted] == [("large", 0.5)] * 2
    pair = as_preference(result.accepted[0])
    assert pair.chosen[0]["content"] == "1 plus 2. #### 3" and pair.rejected[0]["content"] == "I guess it is \\boxed{4}"
    assert pair.meta["source"] == "p1" and (pair.meta["chosen_by"], pair.meta["rejected_by"]) == ("teacher", "student")
    assert pair.prompt == problem(1).prompt, "pairs are answers to the problem itself"
    assert [found.answer for found in result.also["sft"]] == ["1 plus 2. #### 3"]
    assert world.asked == {"alone": 4, "shown": 4, "critic": 3}
    assert result.facts["pass_rate"] == {"alone": 0.0, "with_chain_before": 1.0, "with_chain_after": 1.0}


def test_easy_chains_are_extended_and_hard_ones_simplified() -> None:
    world = World(
        critic=lambda ask, a, b: (
            "<label>medium</label>"
            if "Extended" in ask.messages[-1]["content"] or "[Solution]\n\\boxed" in ask.messages[-1]["content"]
            else f"<label>{'easy' if a == 1 else 'hard'}</label>"
        )
    )
    result = made(world, [problem(1), problem(2)], wrong_answers=1)
    gaps = {pair.id: (pair.meta["gap"], pair.meta["beta"], pair.meta["chosen_by"]) for pair in result.accepted}
    assert gaps == {
        f"p{n}-{gap}-1": (gap, beta, by)
        for n in (1, 2)
        for gap, beta, by in (("small", 0.1, "rethinker"), ("medium", 0.2, "teacher"), ("large", 0.5, "rethinker"))
    }
    small, medium, large = result.accepted[:3]
    assert small.answer == large.answer != medium.answer == small.meta["rejected"]["content"]
    assert (world.asked["extend"], world.asked["simplify"], world.asked["derive"]) == (1, 1, 2)
    assert result.facts["labels_before"] == {"easy": 1, "medium": 0, "hard": 1}
    assert result.facts["rounds"] == {"1": 2} and result.facts["pairs"] == {"small": 2, "medium": 2, "large": 2}
    assert [found.meta["label"] for found in result.also["sft"]] == ["easy", "hard"]


def test_the_critic_sees_how_often_the_student_succeeds() -> None:
    prompts: list[str] = []

    def critic(ask: Ask, a: int, b: int) -> str:
        prompts.append(ask.messages[-1]["content"])
        return "<label>medium</label>"

    world = World(critic=critic, alone=lambda ask, a, b: f"\\boxed{{{a + b + (ask.index > 0)}}}")
    made(world, [problem(7)], student_samples=5, votes=1)
    (text,) = prompts
    assert "solved the problem in 1 of 5 tries" in text and "found the answer in 5 of 5 tries" in text
    assert "7 plus 2. #### 9" in text, "the critic reads the whole chain"


def test_the_answer_is_redacted_for_judge_and_student() -> None:
    seen: list[str] = []

    def watch(kind: str) -> Callable[[Ask, int, int], str]:
        def say(ask: Ask, a: int, b: int) -> str:
            seen.append(ask.messages[-1]["content"])
            return f"<answer>{a + b}</answer>" if kind == "derive" else f"\\boxed{{{a + b}}}"

        return say

    world = World(critic=first_easy, derive=watch("derive"), shown=watch("shown"))
    made(world, [problem(40)])
    assert len(seen) == 4 + 1 + 4 and not any("42" in text for text in seen)


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        ({"extend": lambda ask, a, b: f"<thought>{LONG} \\boxed{{{a}}}</thought>"}, "answer_changed"),
        ({"extend": lambda ask, a, b: f"<thought>\\boxed{{{a + b}}}</thought>"}, "unfit_length"),
        ({"extend": lambda ask, a, b: f"{LONG} \\boxed{{{a + b}}}"}, "malformed_reply"),
        ({"extend": lambda ask, a, b: Reply(f"<thought>{LONG}", finish_reason="length")}, "truncated"),
        ({"derive": lambda ask, a, b: f"<answer>{a}</answer>"}, "not_derived"),
        ({"derive": lambda ask, a, b: "<answer>none</answer>"}, "not_derived"),
        (
            {
                "critic": lambda ask, a, b: "<label>easy</label>",
                "extend": lambda ask, a, b: f"<thought>{LONG * (ask.index + 1)} \\boxed{{{a + b}}}</thought>",
            },
            "still_easy",
        ),
    ],
)
def test_chains_that_never_suit_are_dropped_with_the_last_reason(say: dict[str, Any], reason: str) -> None:
    world = World(**{"critic": first_easy, **say})
    result = made(world, [problem(1)])
    assert not result.accepted and not result.also["sft"] and reasons(result) == {reason: 1}
    assert world.asked["extend"] == 3, "three rounds, each with a sample of its own"


def test_a_later_round_continues_from_the_rewritten_chain() -> None:
    """Too easy, then too hard, then suitable; a failed rewriting is sampled again."""

    def critic(ask: Ask, a: int, b: int) -> str:
        chain = ask.messages[-1]["content"].partition("[Solution]")[2].partition("[What")[0]
        label = "hard" if "Extended" in chain else "medium" if "Cut" in chain else "easy"
        return f"<label>{label}</label>"

    def extend(ask: Ask, a: int, b: int) -> str:
        return "nothing" if ask.index == 0 else f"<thought>{LONG} Extended. \\boxed{{{a + b}}}</thought>"

    def simplify(ask: Ask, a: int, b: int) -> str:
        assert "Extended" in ask.messages[-1]["content"]
        return f"<thought>Cut: \\boxed{{{a + b}}}</thought>"

    result = made(World(critic=critic, extend=extend, simplify=simplify), [problem(1)], wrong_answers=1)
    assert result.facts["rounds"] == {"3": 1}
    assert [pair.answer for pair in result.accepted] == ["Cut: \\boxed{3}", "1 plus 2. #### 3", "Cut: \\boxed{3}"]


def test_votes_need_a_majority() -> None:
    votes = {1: ("easy", "medium", "hard"), 2: ("medium", "medium", "hard"), 3: ("medium", "nonsense", "what?")}
    world = World(critic=lambda ask, a, b: f"<label>{votes[a][ask.index]}</label>")
    result = made(world, [problem(1), problem(2), problem(3)])
    assert {pair.meta["source"] for pair in result.accepted} == {"p2"}
    assert {found.id: found.reason for found in result.rejected} == {"p1": "no_majority", "p3": "unknown_label"}


def test_only_certainly_wrong_answers_are_rejected_ones() -> None:
    said = [
        "Nine it is, or \\boxed{(3, \\infty}",  # undecided
        Reply("I count 4, 5, 6", finish_reason="length"),
        "It is 3. I counted 2 times",  # its last number is wrong, but the answer is there
        Reply(None, problem=("empty_content", "nothing")),
        "no idea",
        "It is 8",
        "It is 8",
        "\\boxed{3}",
        "First 3, but \\boxed{5}",  # stated
    ]
    result = made(World(alone=lambda ask, a, b: said[ask.index]), [problem(1)], student_samples=9, wrong_answers=9)
    assert [pair.meta["rejected"]["content"] for pair in result.accepted] == ["It is 8", "First 3, but \\boxed{5}"]
    assert result.facts["student_tries"] == {
        "no_answer": 2, "right": 1, "truncated": 1, "undecided": 1, "unsure": 1, "wrong": 3,
    }  # fmt: skip
    cut = made(
        World(alone=lambda ask, a, b: said[ask.index]), [problem(1)], student_samples=2, truncated_are_wrong=True
    )
    assert [pair.meta["rejected"]["content"] for pair in cut.accepted] == ["I count 4, 5, 6"]
    assert [as_preference(pair).cut for pair in cut.accepted] == [(False, True)]
    assert not any(any(as_preference(pair).cut) for pair in result.accepted)


@pytest.mark.parametrize(
    ("text", "known", "certain"),
    [
        ("I think the answer is is 5.", "5", False),  # as a sampled model writes
        ("The answer is five.", "5", False),
        ("The answer is 5 or 6.", "5", False),
        ("The answer is 6.", "5", True),
        ("The answer is -5.", "5", True),
        ("\\boxed{x}", "5", False),
        ("\\boxed{(5, 6)}", "5", False),
        ("\\boxed{55}", "5", True),
        ("It is 6 of 5", "5", False),
        ("It is 6", "5", True),
        ("The answer is C.", "B", True),
        ("The answer is surely C.", "B", False),
        ("The answer is the city of light.", "Paris", False),
        ("\\boxed{Rome}", "Paris", True),
        ("The answer to the first part is 7. So 7 * 3 = 21 apples in all.", "21", False),
        ("The answer is 7 per box. Three boxes hold 21.", "21", False),
        ("#### 7\nper box, so 21", "21", False),
        ("First \\boxed{7}, so in the end 21", "21", False),
        ("The answer is A. No, rather B", "B", False),
        ("The answer is 7 per box. They hold twenty-one.", "21", False),
        ("3 boxes with 7 each make twenty-one apples.", "21", False),
        ("3个盒子每个7个，一共二十一个。", "21", False),
        ("Three boxes with 7 each make 22 apples.", "21", True),
        ("The answer is 7 per box. They hold 22.", "21", True),
        ("\\boxed{7}, one more than 6", "21", True),
        ("\\boxed{2y}", "x+1", True),
    ],
)
def test_which_answers_are_certainly_wrong(text: str, known: str, certain: bool) -> None:
    found = find_answer(text)
    assert found is not None and certainly_wrong(text, found, known) is certain


FALSE_ENDS = st.sampled_from(["The answer is %d", "Answer: %d", "#### %d", "it is \\boxed{%d}", "so %d"])
TAILS = st.sampled_from(["So %d", "That makes %d in all.", "= %d", "it is %d apples", "which gives **%d**!", "(%d)"])


@settings(max_examples=100, deadline=None)
@given(FALSE_ENDS, TAILS, st.integers(2, 500), st.integers(2, 500), st.sampled_from([". ", "\n", ", and ", " or "]))
def test_no_answer_is_certainly_wrong_if_the_known_one_follows(
    end: str, tail: str, other: int, known: int, between: str
) -> None:
    text = f"We count. \n{end % other}{between}{tail % known}"
    found = find_answer(text)
    assert found is not None and not certainly_wrong(text, found, str(known))


@pytest.mark.parametrize("name", ["reference", "final_answer", "solution"])
@pytest.mark.parametrize(
    ("value", "known"),
    [
        ("2\\sqrt{3}", "2\\sqrt{3}"),
        ("\\frac{\\pi}{2}", "\\frac{\\pi}{2}"),
        ("(1, 2)", "(1, 2)"),
        ("x^2+1", "x^2+1"),
        (" 18 \n", "18"),
        ("Paris", "Paris"),
        (18, "18"),
        ("She sells 9.\n#### 18", "18"),
        ("So 9 * 2. #### 18", "18"),
        ("Thus \\boxed{2\\sqrt{3}} it is", "2\\sqrt{3}"),
        ("The answer is (1, 2).", "(1, 2)"),
        ("She makes 9 * 2 = 18 dollars every day at the market.", "18"),
        ("We see at once that it is $2\\sqrt{3}$", "We see at once that it is $2\\sqrt{3}$"),
        ("cut off in \\boxed{2", "cut off in \\boxed{2"),
    ],
)
def test_a_known_answer_is_not_cut_down_to_a_number(name: str, value: Any, known: str) -> None:
    assert known_answer(row("a", "Why?", **{name: value})) == known


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        ("She has 8 apples, 3 more than on day 2.", None),
        ("So 7 * 3 = 21", None),
        ("cut off in \\boxed{2", None),
        ("So 7 * 3. #### 21", "21"),
        ("7 * 3\n#### 21\n", "21"),
        ("It is \\boxed{x+1}", "x+1"),
        ("The answer is 21, as 7 * 3 = 21.", "21"),
        ("5", "5"),
        ("5.", "5"),
        ("$1,500", "$1,500"),
        ("who knows", None),
    ],
)
def test_a_known_answer_is_not_guessed_from_a_rows_own_answer(answer: str, known: str | None) -> None:
    assert known_answer(row("a", "Why?", answer)) == known


def test_formulas_are_compared_as_a_whole() -> None:
    """With the known answer 2√3, 3 is wrong and 2√3 is right."""
    known = "2\\sqrt{3}"
    world = World(
        teacher=lambda ask, a, b: "\\boxed{3}" if a == 1 else f"So \\boxed{{{known}}}",
        alone=lambda ask, a, b: "\\boxed{3}",
        shown=lambda ask, a, b: f"\\boxed{{{known}}}",
    )
    result = made(world, [row(f"p{n}", f"What is {n} + 2?", reference=known) for n in (1, 2)])
    assert {found.id: found.reason for found in result.rejected} == {"p1": "wrong_answer"}
    assert [(pair.meta["source"], pair.meta["rejected"]["content"]) for pair in result.accepted] == [
        ("p2", "\\boxed{3}")
    ]


def test_a_guessed_answer_is_not_a_known_one() -> None:
    result = made(World(), [row("p", "What is 5 + 3?", "She has 8 apples, 3 more than on day 2.")])
    assert reasons(result) == {"answer_unknown": 1}


def test_rejections_caused_by_the_critic_keep_its_replies() -> None:
    """Along with the keys of its requests, so that they can be sent again."""
    votes = {1: ("easy", "medium", "hard"), 2: ("easy", "easy", "easy")}
    world = World(
        critic=lambda ask, a, b: Reply(f"<label>{votes[a][ask.index]}</label>", key=f"{a}-{ask.index}"),
        extend=lambda ask, a, b: f"<thought>{LONG * (ask.index + 1)} \\boxed{{{a + b}}}</thought>",
    )
    refused = {found.id: found for found in made(world, [problem(1), problem(2)]).rejected}
    assert {name: found.reason for name, found in refused.items()} == {"p1": "no_majority", "p2": "still_easy"}
    for number in (1, 2):
        found = refused[f"p{number}"]
        assert found.raw == [f"<label>{vote}</label>" for vote in votes[number]]
        assert found.requests == tuple(f"{number}-{index}" for index in range(3))


def test_derived_answers_that_cannot_be_compared_are_undecided() -> None:
    world = World(critic=first_easy, derive=lambda ask, a, b: "<answer>\\boxed{(3, \\infty}}</answer>")
    assert reasons(made(world, [problem(1)])) == {"undecided": 1}


def test_pass_rates_before_and_after_cover_the_same_problems() -> None:
    """Of three right chains, the second never suits, and the third cannot be tried because of a timeout."""
    world = World(
        alone=lambda ask, a, b: Reply(None, problem=("timeout", "?")) if a == 3 else f"\\boxed{{{a + b + 1}}}",
        shown=lambda ask, a, b: f"\\boxed{{{a + b + (a == 2)}}}",
        critic=lambda ask, a, b: f"<label>{'hard' if a == 2 else 'medium'}</label>",
    )
    facts = made(world, [problem(1), problem(2), problem(3)]).facts
    assert facts["chains_right"] == 3
    assert facts["pass_rate"] == {"alone": 0.0, "with_chain_before": 1.0, "with_chain_after": 1.0}


def test_earlier_turns_appear_once() -> None:
    earlier = ({"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Good day"})
    asked = {"role": "user", "content": "What is 1 + 2?"}
    texts: dict[str, list[str]] = {}

    def record(ask: Ask) -> str | Reply:
        texts.setdefault(kind_of(ask), []).append("\n".join(message["content"] for message in ask.messages))
        return World()(ask)

    made(record, [Sample("m", (*earlier, asked), {"reference": "3"})])
    for kind in ("teacher", "shown", "alone"):
        assert texts[kind] and all(text.count("Hello there") == 1 == text.count("Good day") for text in texts[kind])
    generated: list[Ask] = []

    def teacher(ask: Ask) -> str:
        generated.append(ask)
        return "\\boxed{3}"

    drive(cot_generation, cot_generation.Config(), [Sample("m", (*earlier, asked), {"reference": "3"})], teacher)
    assert "\n".join(message["content"] for message in generated[0].messages).count("Good day") == 1


def test_a_student_that_never_fails_gives_an_sft_row_but_no_pair() -> None:
    world = World(alone=lambda ask, a, b: f"\\boxed{{{a + b}}}")
    result = made(world, [problem(1)])
    assert reasons(result) == {"no_pair": 1} and len(result.also["sft"]) == 1
    easy = made(World(alone=lambda ask, a, b: f"\\boxed{{{a + b}}}", critic=first_easy), [problem(1)])
    assert [pair.meta["gap"] for pair in easy.accepted] == ["small"]


def test_chains_of_the_teacher_are_verified() -> None:
    bare = [
        row("w", "What is 1 + 2?", reference="3"),
        row("n", "What is 5 + 2?"),
        row("g", "What is 6 + 2?", solution=8),
    ]
    world = World(teacher=lambda ask, a, b: f"Sum: \\boxed{{{a + b + (a == 1)}}}")
    result = made(world, bare, wrong_answers=1)
    assert [pair.answer for pair in result.accepted] == ["Sum: \\boxed{8}"]
    assert {found.id: found.reason for found in result.rejected} == {"w": "wrong_answer", "n": "answer_unknown"}
    assert world.asked["teacher"] == 2 and world.asked["alone"] == 4, "only right chains go on"
    own = made(World(), [problem(1)], use_outputs=False, wrong_answers=1)
    assert own.accepted[0].answer == "1 plus 2 is \\boxed{3}"
    claimed = made(World(), [row("x", "What is 1 + 2?", "#### 4", reference="3")])
    assert reasons(claimed) == {"wrong_answer": 1}


def test_separate_reasoning_is_rewritten_and_the_answer_kept() -> None:
    message = {"role": "assistant", "content": "It is \\boxed{3}", "reasoning_content": "1 plus 2"}
    start = Sample("s", ({"role": "user", "content": "What is 1 + 2?"}, message), {})
    world = World(critic=first_easy, extend=lambda ask, a, b: f"<thought>{LONG} Extended 77 times</thought>")
    result = made(world, [start], wrong_answers=1)
    small = result.accepted[0]
    assert small.meta["gap"] == "small" and small.meta["rejected"] == message
    assert small.messages[-1] == {**message, "reasoning_content": f"{LONG} Extended 77 times"}


def test_rows_keep_their_fields_except_those_of_pairs() -> None:
    result = made(World(), [problem(1, topic="sums", chosen="?", beta=9)])
    assert result.accepted[0].meta["topic"] == "sums" and result.accepted[0].meta["beta"] == 0.5
    assert as_preference(result.accepted[0]).chosen[0]["content"] == "1 plus 2. #### 3"


def test_betas_are_configured_and_lengths_must_change() -> None:
    result = made(World(critic=first_easy), [problem(1)], beta_small=0.01, beta_medium=0.02, beta_large=0.03)
    assert {pair.meta["gap"]: pair.meta["beta"] for pair in result.accepted} == {
        "small": 0.01, "medium": 0.02, "large": 0.03,
    }  # fmt: skip
    for wrong in ({"shortest_extension": 1.0}, {"longest_simplification": 1.0}, {"beta_small": 0}):
        with pytest.raises(ValueError, match=r"greater|less"):
            cogpo.Config(**wrong)


# --- random replies -----------------------------------------------------------------------------------------------

SAID = {
    "teacher": ["sum \\boxed{R}", "sum \\boxed{W}", "R", "no answer", "The answer is R."],
    "alone": [
        *("\\boxed{R}", "\\boxed{W}", "so W", "so R", "R and then W", "#### W", "\\boxed{W", "dunno", "CUT W", "Why?"),
        *("It is W.", "Not R but \\boxed{W}", "FAIL"),
    ],
    "shown": ["\\boxed{R}", "\\boxed{W}", "EMPTY"],
    "critic": [*(f"<label>{label}</label>" for label in ("easy", "hard", "medium") for _ in range(4)), "odd", "?"],
    "derive": ["<answer>R</answer>", "<answer>\\boxed{R}</answer>", "<answer>R</answer>", "<answer>W</answer>"],
    "extend": [f"<thought>{LONG} {end}</thought>" for end in ("R", "\\boxed{R}", "W")],
    "simplify": ["<thought>R</thought>", "<thought>\\boxed{R}</thought>", "<thought>W</thought>", "?"],
}


def noise(seed: int) -> Callable[[Ask], str | Reply]:
    """Random replies that are a function of the request."""

    def say(ask: Ask) -> str | Reply:
        kind, (a, b) = kind_of(ask), numbers_of(ask)
        key = f"{seed}{kind}{ask.messages}{ask.index}"
        draw = random.Random(hashlib.sha256(key.encode()).digest())
        text = draw.choice(SAID[kind]).replace("R", str(a + b)).replace("W", str(a + b + draw.choice((-1, 1, 10))))
        if text.startswith("CUT"):
            return Reply(text, finish_reason="length")
        if text in {"FAIL", "EMPTY"}:
            return Reply(None, problem=("timeout" if text == "FAIL" and seed % 3 == 0 else "empty_content", text))
        return text

    return say


def final(text: str) -> int | None:
    """The final number of a text, found independently of the operator."""
    for pattern in (r"\\boxed\{(-?\d+)\}", r"#### (-?\d+)", r"answer is (-?\d+)", r"(-?\d+)"):
        if found := re.findall(pattern, text):
            return int(found[-1])
    return None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 7),
    use_outputs=st.booleans(),
    rounds=st.integers(1, 3),
    votes=st.sampled_from([1, 1, 3]),
    shuffle=st.randoms(use_true_random=False),
)
def test_chosen_answers_are_right_and_rejected_ones_wrong_or_unsuitable(
    seed: int, count: int, use_outputs: bool, rounds: int, votes: int, shuffle: random.Random
) -> None:
    numbers = [100 + 7 * number for number in range(count)]
    bare = [row(f"p{number}", f"What is {number} + 2?", reference=number + 2) for number in numbers]
    rows = [problem(number) if number % 2 else found for number, found in zip(numbers, bare, strict=True)]
    config = {"use_outputs": use_outputs, "rounds": rounds, "votes": votes, "student_samples": 3}
    result = made(noise(seed), rows, **config)
    for pair in result.accepted:
        right = int(pair.meta["source"][1:]) + 2
        worse = pair.meta["rejected"]["content"]
        assert pair.answer is not None and final(pair.answer) == right, "a chosen answer is right"
        assert (final(worse) == right) == (pair.meta["gap"] == "small"), "a rejected one is wrong, but for small gaps"
        assert not worse.startswith("CUT") and worse != pair.answer
        assert pair.meta["beta"] == {"small": 0.1, "medium": 0.2, "large": 0.5}[pair.meta["gap"]]
        assert (pair.meta["rounds"] > 0) or pair.meta["gap"] == "large"
    tuned = {found.id: found for found in result.also["sft"]}
    assert all(final(found.answer or "") == int(found.id[1:]) + 2 for found in tuned.values())
    assert {pair.meta["source"] for pair in result.accepted} <= tuned.keys()
    refused = {found.id: found.reason for found in result.rejected}
    assert {pair.meta["source"] for pair in result.accepted}.isdisjoint(refused)
    assert {found.id for found in rows} == tuned.keys() | refused.keys()
    assert set(refused.values()) <= {*cogpo.REASONS, "timeout"}

    order = shuffle.sample(rows, len(rows))
    again = made(noise(seed), order, **config)
    assert sorted(again.accepted, key=lambda pair: pair.id) == sorted(result.accepted, key=lambda pair: pair.id)
    assert {found.id: found for found in again.also["sft"]} == tuned
    alone = made(noise(seed), rows[:1], **config)
    assert alone.accepted == [pair for pair in result.accepted if pair.meta["source"] == rows[0].id]
