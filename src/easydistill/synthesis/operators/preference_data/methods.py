"""The four methods of making pairs, as generators that return the possible pairs of each row; see also `configs.py`.

Under `verifiable`, an answer is right only if its last final answer equals the known one, and wrong only if none of the
final answers it states equals it and nothing after the last one may state it. Anything else is undecided, and in no
pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean

from easydistill.contracts.operator import Ask, Reply, Steps, each
from easydistill.data.messages import Message, images_of, tagged_text, text_of
from easydistill.data.records import Sample
from easydistill.synthesis.chains import known_answer, may_say_later, verify
from easydistill.synthesis.difficulty import SCORES as BOTH_SCORES
from easydistill.synthesis.difficulty import comparison
from easydistill.synthesis.images import ask_about, with_images, words_of
from easydistill.synthesis.operators.preference_data.configs import (
    BAD,
    BOXED,
    GOOD,
    SCORING,
    ContrastiveConfig,
    RankConfig,
    StudentConfig,
    VerifiableConfig,
)
from easydistill.synthesis.operators.preference_data.pairs import Answer, Pair, RowPairs, collect, given, sample
from easydistill.synthesis.replies import Unusable, scores_of
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import Found, find_answer, statements
from easydistill.verification.numbers import bare, numbers, parse_number
from easydistill.verification.plain import Verdict

SCORE = {"score": (0, 9)}


# --- by a judge ---------------------------------------------------------------------------------------------------


def student(config: StudentConfig, rows: Sequence[Sample], tools: Tools) -> Steps[list[RowPairs]]:
    """Have each prompt answered by teacher and student, and every answer scored."""
    return (yield from each(rows, lambda row: _student_row(config, row, tools)))


def _student_row(config: StudentConfig, row: Sample, tools: Tools) -> Steps[RowPairs]:
    found = RowPairs(row, given(config, row))
    if not found.answers and not config.teacher_samples:
        found.blocked = Unusable("no_answer", "the row has no answer, and the teacher is not asked")
        return found
    from_teacher = 0 if found.answers else config.teacher_samples
    asked = sample("teacher", row.prompt_chat, from_teacher)
    asked += sample("student", row.prompt_chat, config.student_samples)
    replies = yield [ask for _, ask in asked]
    collect(found, asked, replies)
    if len({answer.by == "student" for answer in found.answers}) < 2:
        return found
    text = prompt_text(row)
    replies = yield [
        ask_about(tools, SCORING, row, wants=SCORE, role="judge", instruction=text, answer=answer.text)
        for answer in found.answers
    ]
    _pair_with_student(found, config, _scores(found, replies, config))
    return found


def _pair_with_student(found: RowPairs, config: StudentConfig, scores: Mapping[str, int]) -> None:
    """Make pairs of the student's answers with those of others, or with the answers that have the best score."""
    found.answers = [answer for answer in found.answers if answer.name in scores]
    better = _better(config, found.answers, scores)
    for number, top in enumerate(better, start=1):
        for answer in found.answers:
            # A tie between two best answers is counted once.
            if answer.by == "student" and answer not in better[:number]:
                _pair_by_scores(found, config.min_margin, top, answer, (scores[top.name], scores[answer.name]))


def _better(config: StudentConfig, answers: Sequence[Answer], scores: Mapping[str, int]) -> list[Answer]:
    if config.chosen == "best":
        best = max(scores.values(), default=0)
        return [answer for answer in answers if scores[answer.name] == best]
    return [answer for answer in answers if answer.by != "student"]


def _scores(found: RowPairs, replies: Sequence[Reply], config: StudentConfig) -> dict[str, int]:
    """Scores by the answer's name; an answer without a valid score is dropped."""
    found.replies += replies
    scores: dict[str, int] = {}
    for answer, reply in zip(found.answers, replies, strict=True):
        try:
            scores[answer.name] = scores_of(reply, SCORE, config.reply)["score"]
        except Unusable as problem:
            found.dropped_answers.append(problem)
    return scores


def rank(config: RankConfig, rows: Sequence[Sample], tools: Tools) -> Steps[list[RowPairs]]:
    """Have each prompt answered, and every two answers compared in both orders."""
    return (yield from each(rows, lambda row: _rank_row(config, row, tools)))


def _rank_row(config: RankConfig, row: Sample, tools: Tools) -> Steps[RowPairs]:
    found = RowPairs(row, given(config, row))
    asked = [
        one
        for role, count in config.most_samples.items()
        for one in sample(role, row.prompt_chat, count, config.temperatures)
    ]
    replies = yield [ask for _, ask in asked]
    collect(found, asked, replies)
    twos = list(combinations(found.answers, 2))
    if not twos:
        return found
    replies = yield [
        comparison(row, first.text, second.text, tools)
        for one, other in twos
        for first, second in ((one, other), (other, one))
    ]
    found.replies += replies
    for number, (one, other) in enumerate(twos):
        _compare(found, config, one, other, replies[2 * number : 2 * number + 2])
    return found


def _compare(found: RowPairs, config: RankConfig, one: Answer, other: Answer, replies: Sequence[Reply]) -> None:
    """Make a pair of two answers scored in both orders, if the orders agree."""
    try:
        there, back = (scores_of(reply, BOTH_SCORES, config.reply) for reply in replies)
    except Unusable as problem:
        found.dropped_pairs.append(problem)
        return
    gaps = there["first"] - there["second"], back["second"] - back["first"]
    if gaps[0] * gaps[1] < 0 or (0 in gaps and any(gaps)):
        detail = f"{one.name} and {other.name}: the differences in the two orders are {gaps[0]} and {gaps[1]}"
        found.dropped_pairs.append(Unusable("inconsistent", detail))
        return
    first, second = fmean((there["first"], back["second"])), fmean((there["second"], back["first"]))
    if first < second:
        one, other, first, second = other, one, second, first
    _pair_by_scores(found, config.min_margin, one, other, (first, second))


def _pair_by_scores(found: RowPairs, least: float, better: Answer, worse: Answer, scores: tuple[float, float]) -> None:
    """Make a pair of two answers if the first one's score exceeds the second one's by `least`."""
    margin = scores[0] - scores[1]
    names = f"{better.name} and {worse.name}"
    if margin == 0:
        found.dropped_pairs.append(Unusable("tie", f"{names}: both have {scores[0]:g}"))
    elif margin < 0:
        found.dropped_pairs.append(Unusable("student_better", f"{names}: {scores[0]:g} and {scores[1]:g}"))
    elif margin < least:
        found.dropped_pairs.append(Unusable("small_margin", f"{names}: {margin:g}; the minimum is {least:g}"))
    else:
        found.pairs.append(Pair(better, worse, scores))


# --- by the known answer ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tried:
    """An answer to a problem whose final answer is known."""

    known: str
    answer: Answer
    final: Found | None
    """Its final answer."""
    earlier: tuple[str, ...]
    """Other final answers that it states."""

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        final = () if self.final is None else (self.final.text,)
        return [(self.known, text) for text in (*final, *self.earlier)]

    @property
    def may_contain_known(self) -> bool:
        """Whether the known answer may occur in the text other than as a stated final answer."""
        text = self.answer.text
        anywhere = self.answer.truncated or (self.final is not None and self.final.strategy == "last_number")
        if anywhere and _contains(text, self.known):
            return True
        return self.final is not None and may_say_later(text, self.final, self.known)


def verifiable(config: VerifiableConfig, rows: Sequence[Sample], tools: Tools) -> Steps[list[RowPairs]]:
    """Have each prompt answered and every final answer compared with the known one."""
    every = [RowPairs(row, given(config, row)) for row in rows]
    asked: list[tuple[RowPairs, str, list[tuple[str, Ask]]]] = []
    for found in every:
        known = known_answer(found.row, config.strategies)
        if known is None:
            found.blocked = Unusable("answer_unknown", "there is no known final answer to check others against")
        else:
            asked.append((found, known, _problem_samples(config, found.row, tools)))
    replies = iter((yield [ask for _, _, samples in asked for _, ask in samples]))
    tried: list[tuple[RowPairs, list[_Tried]]] = []
    for found, known, samples in asked:
        collect(found, samples, [next(replies) for _ in samples], keep_truncated=config.allow_truncated)
        tried.append((found, [_read(config, known, answer) for answer in found.answers]))
    verdicts = _verdicts(one for _, answers in tried for one in answers)
    for found, answers in tried:
        _right_above_wrong(found, answers, verdicts)
    return every


def _verdicts(tried: Iterable[_Tried]) -> dict[tuple[str, str], Verdict]:
    """The results of all comparisons; equal ones are made once."""
    comparisons = list(dict.fromkeys(pair for one in tried for pair in one.comparisons))
    made = zip(comparisons, verify(comparisons), strict=True)
    return {pair: verdict for pair, verdict in made if verdict is not None}


def _problem_samples(config: VerifiableConfig, row: Sample, tools: Tools) -> list[tuple[str, Ask]]:
    messages = row.prompt
    if config.boxed:
        last = messages[-1]
        ask = tools.ask(BOXED, text_of(last), before=messages[:-1], instruction=tagged_text(last))
        messages = with_images(ask, images_of(last)).messages
    chat = row.prompt_chat.with_messages(messages)
    return [one for role, count in config.most_samples.items() for one in sample(role, chat, count)]


def _read(config: VerifiableConfig, known: str, answer: Answer) -> _Tried:
    final = find_answer(answer.text, config.strategies)
    earlier = tuple(
        answer.text[start:end]
        for start, end in statements(answer.text)
        if final is None or not start <= final.start <= final.end <= end
    )
    return _Tried(known, answer, final, earlier)


def _is_right(one: _Tried, verdicts: Mapping[tuple[str, str], Verdict]) -> bool:
    """Whether an answer is right.

    Raises:
        Unusable: that is undecided, or the answer must not be used.
    """
    outcomes = {text: verdicts[known, text].outcome for known, text in one.comparisons}
    name, final = one.answer.name, one.final
    may_be_right = set(outcomes.values()) - {"different"} or one.may_contain_known
    if one.answer.truncated:
        if may_be_right:
            raise Unusable("truncated", f"{name} was truncated and may contain the right answer")
        return False
    if final is None:
        raise Unusable("no_final_answer", f"no final answer was found in {name}")
    if outcomes[final.text] == "equal":
        return True
    if may_be_right:
        raise Unusable("undecided", f"{name} says {final.text!r}, but may also say {one.known!r}, which is right")
    return False


def _contains(text: str, known: str) -> bool:
    """Whether the known answer occurs anywhere in a text: by value if it is a number, otherwise literally."""
    number = parse_number(known)
    if number is None:
        return bare(known).casefold() in text.casefold()
    values = {number.value, number.numeral}
    return any(values & {found.value, found.numeral} for found, _, _ in numbers(text))


def _right_above_wrong(found: RowPairs, tried: Sequence[_Tried], verdicts: Mapping[tuple[str, str], Verdict]) -> None:
    right: list[Answer] = []
    wrong: list[Answer] = []
    for one in tried:
        try:
            (right if _is_right(one, verdicts) else wrong).append(one.answer)
        except Unusable as problem:
            found.dropped_answers.append(problem)
    found.answers = [*right, *wrong]
    found.pairs = [Pair(better, worse, (1.0, 0.0)) for better, worse in product(right, wrong)]
    if right and not wrong:
        found.blocked = Unusable("all_right", f"{len(right)} right, none wrong among the answers that could be checked")
    elif wrong and not right:
        found.blocked = Unusable("all_wrong", f"{len(wrong)} wrong, none right among the answers that could be checked")


# --- by system prompts --------------------------------------------------------------------------------------------


def contrastive(config: ContrastiveConfig, rows: Sequence[Sample], tools: Tools) -> Steps[list[RowPairs]]:
    """Have the teacher answer each row under a good system prompt and under a bad one."""
    every = [RowPairs(row) for row in rows]
    asked = [_contrasted(config, row, tools) for row in rows]
    replies = iter((yield [ask for samples in asked for _, ask in samples]))
    for found, samples in zip(every, asked, strict=True):
        collect(found, samples, [next(replies) for _ in samples])
        good, bad = ([one for one in found.answers if one.name.startswith(side)] for side in ("good", "bad"))
        found.pairs = [Pair(better, worse) for better, worse in product(good, bad)]
    return every


def _contrasted(config: ContrastiveConfig, row: Sample, tools: Tools) -> list[tuple[str, Ask]]:
    language = tools.language(words_of(row))
    samples: list[tuple[str, Ask]] = []
    for side, name in (("good", GOOD), ("bad", BAD)):
        system = tools.prompt(name, language).fill(language=language)
        chat = row.prompt_chat.with_messages(_with_system(system, row.prompt))
        for number in range(config.teacher_samples):
            samples.append((f"{side}-{number + 1}", Ask.of(chat, index=number)))
    return samples


def _with_system(text: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt with a system prompt, which precedes the prompt's own if it has one."""
    own = prompt[0]["content"] if prompt[0]["role"] == "system" else None
    system: Message = {"role": "system", "content": text if own is None else f"{text}\n\n{own}"}
    return (system, *(prompt if own is None else prompt[1:]))
