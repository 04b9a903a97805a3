"""Pairs of answers: the four methods, which pairs are taken, and which are never made."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.unit.synthesis.test_asking import replies_by, row

from easydistill.contracts.operator import Ask, Reply, Result, answer_with
from easydistill.data.records import Sample, content_hash
from easydistill.data.writing import as_preference, pair_row
from easydistill.synthesis import chains as _chains
from easydistill.synthesis.operators import preference_data
from easydistill.synthesis.operators.preference_data.choice import choose, length_facts, surplus
from easydistill.synthesis.operators.preference_data.configs import PROMPTS
from easydistill.synthesis.operators.preference_data.pairs import Answer, Pair
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import DEFAULT_STRATEGIES, find_answer
from easydistill.verification.equality import Verifier
from easydistill.verification.plain import compare_plainly

Say = Callable[[Ask], "str | Reply"]


@pytest.fixture(scope="module", autouse=True)
def one_verifier() -> Iterator[None]:
    """Its workers start once, not for every Hypothesis example."""
    with Verifier() as verifier, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chains, "Verifier", lambda: nullcontext(verifier))
        yield


def config_of(**values: Any) -> Any:
    return TypeAdapter(preference_data.Config).validate_python(values)


def drive(rows: Sequence[Sample], say: Say, **config: Any) -> tuple[Result, list[list[Ask]]]:
    made = config_of(**config)
    waves: list[list[Ask]] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        waves.append(list(asks))
        return replies_by(say, asks)

    result = answer_with(preference_data.run(made, rows, Tools(made)), answer)
    assert result.entered == len(result.accepted) + len(result.rejected)
    assert {found.reason for found in result.rejected} <= {*preference_data.REASONS, "rate_limit"}
    return result, waves


def reasons(result: Result) -> dict[str, str]:
    return {found.id: found.reason for found in result.rejected}


def judged(text: str) -> str:
    """The answer in a judge's prompt."""
    return text.split("[Answer]")[1].split("Score it from 0")[0].strip()


def both(text: str) -> tuple[str, str]:
    """The two answers in a judge's prompt."""
    first, second = text.split("[First answer]")[1].split("[Second answer]")
    return first.strip(), second.split("Score each from")[0].strip()


def scored(scores: dict[str, int], answers: Say) -> Say:
    """Replies of a judge that looks scores up, and those of `answers` for the others."""

    def say(ask: Ask) -> str | Reply:
        if ask.role == "judge":
            return f"<score>{scores[judged(ask.messages[-1]['content'])]}</score>"
        return answers(ask)

    return say


ONE = [row("a", "Why is the sky blue?")]


# --- student ------------------------------------------------------------------------------------------------------


def test_the_teachers_answer_is_chosen_over_the_students_worst() -> None:
    own = ["bad answer", "fair answer", "good answer", "bad answer"]
    say = scored(
        {"The teacher's": 7, "bad answer": 2, "fair answer": 7, "good answer": 9},
        lambda ask: "The teacher's" if ask.role == "teacher" else own[ask.index],
    )
    result, waves = drive(ONE, say)
    (pair,) = result.accepted
    assert pair.id == "a" and pair.messages == (*ONE[0].messages, {"role": "assistant", "content": "The teacher's"})
    names = ("margin", "chosen_score", "rejected_score", "chosen_by", "rejected_by")
    assert {name: pair.meta[name] for name in names} == {
        "margin": 5, "chosen_score": 7, "rejected_score": 2, "chosen_by": "teacher", "rejected_by": "student"
    }  # fmt: skip
    assert pair.meta["rejected"] == {"role": "assistant", "content": "bad answer"} and pair.meta["method"] == "student"
    assert [ask.role for ask in waves[0]] == ["teacher", *["student"] * 4]
    assert [ask.role for ask in waves[1]] == ["judge"] * 4, "the repeated answer is not judged again"
    assert result.facts["answers_dropped"] == {"duplicate": 1}
    assert result.facts["pairs_dropped"] == {"tie": 1, "student_better": 1}


def test_the_best_answer_may_be_the_students() -> None:
    own = ["bad answer", "good answer"]

    def answers(ask: Ask) -> str:
        return "T" if ask.role == "teacher" else own[ask.index]

    say = scored({"T": 7, "bad answer": 2, "good answer": 9}, answers)
    result, _ = drive(ONE, say, student_samples=2, chosen="best", max_pairs=5)
    (pair,) = result.accepted
    assert (pair.answer, pair.meta["chosen_by"], pair.meta["margin"]) == ("good answer", "student", 7)
    tied = scored({"T": 5, "bad answer": 5, "good answer": 5}, answers)
    result, _ = drive(ONE, tied, student_samples=2, chosen="best", max_pairs=5)
    assert reasons(result) == {"a": "tie"} and result.facts["pairs_dropped"] == {"tie": 3}


def test_a_rows_own_answer_replaces_the_teachers() -> None:
    rows = [row("a", "Why?", "Because."), row("b", "How?")]
    say = scored({"Because.": 8, "T": 8, "S": 3}, lambda ask: "T" if ask.role == "teacher" else "S")
    result, waves = drive(rows, say, student_samples=1)
    chosen = [(found.answer, found.meta["chosen_by"]) for found in result.accepted]
    assert chosen == [("Because.", "row"), ("T", "teacher")]
    assert [ask.role for ask in waves[0]] == ["student", "teacher", "student"]
    result, _ = drive(rows, say, student_samples=1, given_answers=False)
    assert {found.meta["chosen_by"] for found in result.accepted} == {"teacher"}
    result, waves = drive(rows, say, student_samples=1, teacher_samples=0)
    assert reasons(result) == {"b": "no_answer"} and [ask.role for ask in waves[0]] == ["student"]


@pytest.mark.parametrize(
    ("own", "teacher", "score", "reason"),
    [
        ("S", "T", 7, "tie"),
        ("S", "T", 9, "student_better"),
        ("S", "T", 6, "small_margin"),
        ("T", "T", 0, "duplicate"),
        ("  T\n", "T", 0, "duplicate"),
        ("S", Reply("T", finish_reason="length"), 0, "truncated"),
        (Reply("S", finish_reason="length"), "T", 0, "truncated"),
        ("S", Reply(None, problem=("rate_limit", "HTTP 429")), 0, "rate_limit"),
    ],
)
def test_rows_without_a_pair_are_rejected_with_the_reason(own: Any, teacher: Any, score: int, reason: str) -> None:
    say = scored({"T": 7, "S": score}, lambda ask: teacher if ask.role == "teacher" else own)
    result, _ = drive(ONE, say, student_samples=1, min_margin=2)
    assert reasons(result) == {"a": reason} and not result.accepted


def test_a_score_that_does_not_parse_is_no_score() -> None:
    def say(ask: Ask) -> str:
        if ask.role == "judge":
            return "8 of 9" if judged(ask.messages[-1]["content"]) == "S" else "<score>9</score>"
        return "T" if ask.role == "teacher" else "S"

    result, _ = drive(ONE, say, student_samples=1)
    assert reasons(result) == {"a": "malformed_score"}
    assert result.rejected[0].raw is not None


def test_rows_keep_their_fields_except_those_of_pairs() -> None:
    rows = [row("a", "Why?", beta=0.5, gap="large", chosen="x", topic="sky", margin=99)]
    say = scored({"T": 7, "S": 3}, lambda ask: "T" if ask.role == "teacher" else "S")
    result, _ = drive(rows, say, student_samples=1)
    written = pair_row(as_preference(result.accepted[0]))
    assert written["topic"] == "sky" and written["margin"] == 4 and not {"beta", "gap"} & set(written)
    assert written["chosen"] == [{"role": "assistant", "content": "T"}]


# --- rank ---------------------------------------------------------------------------------------------------------


def test_both_orders_must_prefer_the_same_answer() -> None:
    worth = {"teacher 0": 9, "teacher 1": 5, "student 0": 5, "student 1": 2}

    def say(ask: Ask) -> str:
        if ask.role != "judge":
            return f"{ask.role} {ask.index}"
        first, second = both(ask.messages[-1]["content"])
        one, other = worth[first], worth[second]
        if {first, second} == {"teacher 0", "student 1"}:
            one, other = 8, 3  # the first one is always better
        return f"<first>{one}</first><second>{other}</second>"

    result, waves = drive(ONE, say, method="rank", max_pairs=9)
    found = {(pair.answer, pair.meta["rejected"]["content"], pair.meta["margin"]) for pair in result.accepted}
    assert found == {
        ("teacher 0", "teacher 1", 4), ("teacher 0", "student 0", 4),
        ("teacher 1", "student 1", 3), ("student 0", "student 1", 3),
    }  # fmt: skip
    assert result.facts["pairs_dropped"] == {"inconsistent": 1, "tie": 1}
    assert len(waves[1]) == 12 and [found.id for found in result.accepted] == ["a-1", "a-2", "a-3", "a-4"]


def test_a_gap_in_one_order_only_is_inconsistent() -> None:
    def say(ask: Ask) -> str:
        if ask.role != "judge":
            return ask.role
        first, _ = both(ask.messages[-1]["content"])
        return "<first>7</first><second>7</second>" if first == "teacher" else "<first>7</first><second>8</second>"

    result, _ = drive(ONE, say, method="rank", teacher_samples=1, student_samples=1)
    assert reasons(result) == {"a": "inconsistent"}


def test_samples_cycle_through_temperatures() -> None:
    result, waves = drive(
        ONE, lambda ask: f"{ask.role} {ask.index}" if ask.role != "judge" else "<first>1</first><second>1</second>",
        method="rank", temperatures=[0.6, 1.1], teacher_samples=3, student_samples=2,
    )  # fmt: skip
    temperatures = [(ask.role, ask.temperature) for ask in waves[0]]
    assert temperatures == [("teacher", 0.6), ("teacher", 1.1), ("teacher", 0.6), ("student", 0.6), ("student", 1.1)]
    assert {ask.temperature for ask in waves[1]} == {None} and reasons(result) == {"a": "tie"}


# --- verifiable ---------------------------------------------------------------------------------------------------

SUMS = [row(f"p{n}", f"What is {n} + 2?", reference=str(n + 2)) for n in range(4)]


def test_right_is_chosen_over_wrong() -> None:
    said = ["So \\boxed{2}", "Hm: \\boxed{3}", "So \\boxed{2}.", "No idea"]
    result, waves = drive(SUMS[:1], lambda ask: said[ask.index], method="verifiable", max_pairs=4)
    found = {(pair.answer, pair.meta["rejected"]["content"]) for pair in result.accepted}
    assert found == {(said[0], said[1]), (said[2], said[1])}
    assert {pair.meta["margin"] for pair in result.accepted} == {1.0}
    assert "gap" not in result.accepted[0].meta and result.accepted[0].meta["reference"] == "2"
    assert result.facts["answers_dropped"] == {"no_final_answer": 1}
    assert [ask.messages for ask in waves[0]] == [SUMS[0].messages] * 4, "asked as the student will be trained"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["\\boxed{2}", "so \\boxed{2}"], "all_right"),
        (["\\boxed{3}", "so \\boxed{4}"], "all_wrong"),
        (["\\boxed{2}", "\\boxed{2} and then \\boxed{3}"], "all_right"),
        (["The answer is 2. Or \\boxed{3}", "The answer is 2. Or rather \\boxed{4}"], "undecided"),
        (["2", "3"], "no_final_answer"),
        (["\\boxed{2}", Reply("\\boxed{3} is", finish_reason="length")], "all_right"),
    ],
)
def test_rows_without_a_right_and_a_wrong_answer_are_rejected(said: list[Any], reason: str) -> None:
    result, _ = drive(SUMS[:1], lambda ask: said[ask.index], method="verifiable", student_samples=2)
    assert reasons(result) == {"p0": reason}


@pytest.mark.parametrize(
    ("cut", "is_pair"),
    [
        ("Let us see. 7 and", True),
        ("It is \\boxed{9} because", True),
        ("It is \\boxed{2} because", False),
        ("Adding 0 to 2 we", False),
    ],
)
def test_a_cut_off_answer_is_rejected_only_if_it_never_says_the_right_one(cut: str, is_pair: bool) -> None:
    def say(ask: Ask) -> str | Reply:
        return Reply(cut, finish_reason="length") if ask.index else "\\boxed{2}"

    options: dict[str, Any] = {"method": "verifiable", "student_samples": 2}
    result, _ = drive(SUMS[:1], say, **options, allow_truncated=True)
    assert len(result.accepted) == is_pair
    assert all(as_preference(pair).cut == (False, True) for pair in result.accepted)
    result, _ = drive(SUMS[:1], say, **options)
    assert not result.accepted and result.facts["answers_dropped"] == {"truncated": 1}
    # It is never a chosen answer, even if it is right.
    swapped, _ = drive(
        SUMS[:1], lambda ask: Reply("\\boxed{2} it", finish_reason="length") if ask.index else "\\boxed{5}", **options,
        allow_truncated=True,
    )  # fmt: skip
    assert not swapped.accepted


@pytest.mark.parametrize(
    "wrong",
    [
        "The answer to the first part is 7. So 7 * 3 = 21 apples in all.",
        "The answer is 7 per box. Three boxes hold 21.",
        "#### 7\nis one box, so 21",
        "The answer is 7 per box. Three boxes hold twenty-one.",
        "Three boxes: \\boxed{7} each, and so 21",
        "3 boxes with 7 each make twenty-one apples.",
    ],
)
def test_an_answer_that_goes_on_to_the_right_one_is_undecided(wrong: str) -> None:
    apples = row("a", "How many apples?", reference="21")
    result, _ = drive(
        [apples], lambda ask: wrong if ask.index else "\\boxed{21}", method="verifiable", student_samples=2,
        strategies=list(DEFAULT_STRATEGIES),
    )  # fmt: skip
    assert reasons(result) == {"a": "all_right"} and result.facts["answers_dropped"] == {"undecided": 1}


def test_problems_without_a_known_answer_cause_no_requests() -> None:
    result, waves = drive([row("a", "Why?")], lambda ask: "", method="verifiable")
    assert reasons(result) == {"a": "answer_unknown"} and not any(waves)


def test_a_box_is_asked_for_but_not_part_of_the_pair() -> None:
    said = ["\\boxed{2}", "\\boxed{3}"]
    result, waves = drive(SUMS[:1], lambda ask: said[ask.index], method="verifiable", student_samples=2, boxed=True)
    assert "\\boxed{}" in waves[0][0].messages[-1]["content"]
    assert result.accepted[0].prompt == SUMS[0].messages


PARTS = st.sampled_from(
    [
        "\\boxed{%s}", "The answer is %s.", "#### %s", "so we get %s", "Answer: %s\n", "no, not %s.", "then %s + 1 = ",
        "答案是%s。", "I think **%s**", "\\boxed{%s} dollars", "first \\boxed{%s", "%s apples, that is",
    ]
)  # fmt: skip
NUMBERS = st.sampled_from(["2", "2.0", "3", "\\frac{4}{2}", "20", "200%", "two", "$2$", "1", "-2"])
TEXTS = st.lists(st.builds(lambda part, number: part.replace("%s", number), PARTS, NUMBERS), min_size=1, max_size=3)
REPLIES = st.builds(
    lambda parts, cut: Reply("\n".join(parts), finish_reason="length" if cut else "stop"), TEXTS, st.booleans()
)


@settings(deadline=None, max_examples=150)
@given(st.lists(REPLIES, min_size=2, max_size=6), st.booleans(), st.booleans())
def test_no_rejected_answer_is_right_and_no_chosen_one_wrong(said: list[Reply], guess: bool, cut: bool) -> None:
    """Checked independently with every single strategy, and literally."""
    strategies = list(DEFAULT_STRATEGIES) if guess else ["boxed", "hashes", "phrase"]
    result, _ = drive(
        SUMS[:1], lambda ask: said[ask.index], method="verifiable", student_samples=len(said), max_pairs=50,
        strategies=strategies, allow_truncated=cut,
    )  # fmt: skip
    for pair in result.accepted:
        worse = pair.meta["rejected"]["content"]
        assert pair.answer is not None and worse != pair.answer
        found = find_answer(pair.answer, strategies)
        verdict = compare_plainly("2", found.text) if found is not None else None
        assert found is not None and (verdict is None or verdict.equal)
        assert not any(reply.text == pair.answer and reply.finish_reason == "length" for reply in said) or any(
            reply.text == pair.answer and reply.finish_reason == "stop" for reply in said
        )
        for strategy in ("boxed", "hashes", "phrase"):
            # With any single strategy, the rejected answer is not right either.
            final = find_answer(worse, [strategy])
            if final is not None:
                verdict = compare_plainly("2", final.text)
                assert verdict is None or not verdict.equal, (worse, strategy)
        assert "\\boxed{2}" not in worse and "#### 2\n" not in worse + "\n"


# --- contrastive prompt -------------------------------------------------------------------------------------------


def test_good_and_bad_system_prompts() -> None:
    rows = [
        Sample("a", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})),
        row("z", "请写一首关于大海的诗。"),
    ]
    result, waves = drive(rows, lambda ask: ask.messages[0]["content"][:8], method="contrastive_prompt")
    assert [len(wave) for wave in waves] == [4] and {ask.role for ask in waves[0]} == {"teacher"}
    good, bad, chinese, _ = (ask.messages for ask in waves[0])
    assert good[0]["content"].endswith("Be brief.") and good[0] != bad[0] and good[1:] == bad[1:]
    assert "回答" in chinese[0]["content"]
    assert [found.messages[:-1] for found in result.accepted] == [found.messages for found in rows]
    assert result.accepted[0].answer == good[0]["content"][:8] and "margin" not in result.accepted[0].meta
    assert result.facts["mean_margin"] is None


def test_equal_answers_to_both_prompts_are_no_pair() -> None:
    result, _ = drive(ONE, lambda ask: "42", method="contrastive_prompt")
    assert reasons(result) == {"a": "duplicate"}


# --- which pairs are taken ----------------------------------------------------------------------------------------


def pairs_of(draw: random.Random, rows: int, most: int) -> dict[str, list[Pair]]:
    def answer(name: str) -> Answer:
        return Answer({"role": "assistant", "content": "word " * draw.randint(1, 9)}, "student", name)

    found: dict[str, list[Pair]] = {}
    for number in range(rows):
        answers = [answer(f"s{n}") for n in range(5)]
        found[f"r{number}"] = [
            Pair(*draw.sample(answers, 2), (float(draw.randint(4, 9)), float(draw.randint(0, 3))))
            for _ in range(draw.randint(0, most))
        ]
    return found


SEEDS = st.integers(0, 10**6)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 30), st.integers(1, 4))
def test_balancing_takes_as_many_of_the_possible_pairs(seed: int, rows: int, most: int) -> None:
    draw = random.Random(seed)
    possible = pairs_of(draw, rows, 6)
    plain = choose(possible, most, 0, balanced=False)
    balanced = choose(possible, most, 0, balanced=True)
    for name, pairs in possible.items():
        assert len(plain[name]) == len(balanced[name]) == min(most, len(pairs))
        for taken in (plain[name], balanced[name]):
            left = list(pairs)
            for pair in taken:
                left.remove(pair)
    shuffled = list(possible)
    draw.shuffle(shuffled)
    assert choose({name: possible[name] for name in shuffled}, most, 0, balanced=True) == balanced
    gone = surplus(balanced, 0)
    left = [pair for name, pairs in balanced.items() for pair in pairs if pair not in gone.get(name, [])]
    assert all(pair in balanced[name] for name, pairs in gone.items() for pair in pairs)
    names = [(name, pair.name) for name, pairs in balanced.items() for pair in pairs]
    if len(set(names)) == len(names):
        assert sum(pair.direction for pair in left) == 0

    def tilt(taken: dict[str, list[Pair]]) -> int:
        return abs(sum(pair.direction for pairs in taken.values() for pair in pairs))

    if most == 1:
        assert tilt(balanced) <= max(1, tilt(plain))


def test_balancing_makes_up_for_rows_without_a_choice() -> None:
    def pair(chosen: int, rejected: int, margin: float) -> Pair:
        texts = [Answer({"role": "assistant", "content": "w " * n}, "student", f"{n}") for n in (chosen, rejected)]
        return Pair(texts[0], texts[1], (margin, 0.0))

    forced = {f"f{n}": [pair(9, 3, 5)] for n in range(6)}
    free = {f"g{n}": [pair(9, 3, 5), pair(3, 9, 2)] for n in range(10)}
    plain = choose(forced | free, 1, 0, balanced=False)
    assert length_facts(pair for pairs in plain.values() for pair in pairs)["chosen_longer"] == 1
    balanced = [pair for pairs in choose(forced | free, 1, 0, balanced=True).values() for pair in pairs]
    facts = length_facts(balanced)
    assert facts["chosen_longer"] == facts["chosen_shorter"] == 0.5 and facts["margin_correlation"] > 0.5


def test_pairs_of_one_prompt_share_few_answers() -> None:
    said = ["\\boxed{2} a", "\\boxed{2} b", "\\boxed{3} a", "\\boxed{3} b"]
    result, _ = drive(SUMS[:1], lambda ask: said[ask.index], method="verifiable", max_pairs=2)
    texts = [text for pair in result.accepted for text in (pair.answer, pair.meta["rejected"]["content"])]
    assert sorted(texts) == said
    assert result.facts["pairs_dropped"] == {"beyond_max_pairs": 2}


def test_length_limits() -> None:
    rows = [row(name, f"Why {name}?") for name in "abc"]
    own = {"a": "short", "b": "quite a long answer with many a word in it", "c": "also short"}
    say = scored(
        {"two words": 8, **dict.fromkeys(own.values(), 2)},
        lambda ask: "two words" if ask.role == "teacher" else own[ask.messages[-1]["content"][4]],
    )
    result, _ = drive(rows, say, student_samples=1, max_length_ratio=3)
    assert reasons(result) == {"b": "length_ratio"} and len(result.accepted) == 2
    # One longer, one shorter, one equal: nothing to drop. Without b there is one longer.
    result, _ = drive(rows, say, student_samples=1, length_balance="drop")
    assert len(result.accepted) == 3 and result.facts["lengths"]["with_balance"]["chosen_longer"] == 0.3333
    result, _ = drive(rows[::2], say, student_samples=1, length_balance="drop")
    assert reasons(result) == {"a": "length_balance"} and [found.id for found in result.accepted] == ["c"]


# --- all of them --------------------------------------------------------------------------------------------------


def world(ask: Ask) -> str:
    """Answers and scores that depend on the request alone, with many ties."""
    number = int(content_hash([list(ask.messages), ask.index, ask.role])[:6], 16)
    if ask.role == "judge":
        text = ask.messages[-1]["content"]
        if "[First answer]" in text:
            first, second = (int(content_hash(part)[:2], 16) % 3 + 1 for part in both(text))
            return f"<first>{first}</first><second>{second}</second>"
        return f"<score>{int(content_hash(judged(text))[:2], 16) % 3}</score>"
    return "word " * (number % 7) + f"\\boxed{{{number % 3}}}"


METHODS = ("student", "rank", "verifiable", "contrastive_prompt")


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(METHODS), SEEDS, st.integers(1, 3), st.sampled_from(["off", "choose", "drop"]))
def test_neither_the_order_of_rows_nor_ties_matter(method: str, seed: int, most: int, balance: str) -> None:
    rows = [row(f"{seed}-{n}", f"Question {seed} {n}?", reference=str(n % 3)) for n in range(8)]
    options: dict[str, Any] = {"method": method, "max_pairs": most, "length_balance": balance}
    one, _ = drive(rows, world, **options)
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    other, _ = drive(shuffled, world, **options)

    def by_id(result: Result) -> tuple[list[Sample], dict[str, str]]:
        return sorted(result.accepted, key=lambda found: found.id), reasons(result)

    assert by_id(one) == by_id(other)
    assert one.facts["lengths"] == other.facts["lengths"]
    for pair in one.accepted:
        assert pair.meta.get("margin", 1) > 0
        assert pair.answer != pair.meta["rejected"]["content"]
        assert 0 < sum(found.meta["source"] == pair.meta["source"] for found in one.accepted) <= most
    sources = {pair.meta["source"] for pair in one.accepted}
    assert sources | set(reasons(one)) == {found.id for found in rows} and not sources & set(reasons(one))


# --- configs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"method": "student", "teacher_samples": 0, "given_answers": False},
        {"method": "rank", "teacher_samples": 1, "student_samples": 0, "given_answers": False},
        {"method": "verifiable", "student_samples": 1},
        {"method": "verifiable", "min_margin": 2},
        {"method": "contrastive_prompt", "prompts": {"answer_scoring": "mine.txt"}},
        {"method": "rank", "temperatures": [0.0001]},
        {"method": "rank", "temperatures": [0]},
        {"method": "rank", "temperatures": [0, 0.7], "student_samples": 3},
        {"method": "other"},
    ],
)
def test_invalid_settings_are_errors(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        config_of(**values)


def test_one_greedy_answer_among_samples_is_fine() -> None:
    config_of(method="rank", temperatures=[0, 0.7], student_samples=2)
    config_of(method="rank", temperatures=[0, 0.7, 1.0], student_samples=3, teacher_samples=1)


def test_every_prompt_belongs_to_a_method() -> None:
    members = [get_args(member)[0] for member in get_args(get_args(preference_data.Config)[0])]
    assert {name for member in members for name in member.asks_with} == set(PROMPTS)
    assert config_of().method == "student"
