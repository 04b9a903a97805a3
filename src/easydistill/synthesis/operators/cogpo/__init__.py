"""Pairs for cognitive preference optimisation (CogPO, arXiv 2504.09802): chains of thought that suit one student.

    correct    the teacher's chains whose final answers verify; see `run`
    critic     is a chain easy, medium or hard for this student? See `_critic`
    rethinker  easy ones are extended, hard ones simplified, until the critic says medium; see `_rethinking`
    wrong      the student's own failing answers; see `_student_tries`

    gap      chosen               rejected                      β
    small    rewritten            right, but easy or hard       0.1
    medium   right, easy or hard  wrong                         0.2
    large    medium or rewritten  wrong                         0.5

A pair ends with the chosen answer; `meta` has `rejected`, `beta`, `gap`, the problem's id as `source`, who wrote what,
and what the critic said. `also["sft"]` are the chains that suit, to fine-tune on before. A problem whose chain suits
but which the student never fails gives such a row and no pair: it is rejected as `no_pair`. What becomes of a problem
depends on itself alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, Literal

from easydistill.config.base import Beta, PositiveInt
from easydistill.contracts.operator import Reply, Result, Steps
from easydistill.data.records import Message, Rejection, Sample
from easydistill.synthesis.chains import known_answer
from easydistill.synthesis.operators import cot_generation
from easydistill.synthesis.operators.cogpo import critic as _critic
from easydistill.synthesis.operators.cogpo import rethinking as _rethinking
from easydistill.synthesis.operators.cogpo import student_tries as _student_tries
from easydistill.synthesis.operators.cogpo.critic import LABELS, Labelled, criticise
from easydistill.synthesis.operators.cogpo.rethinking import RethinkingConfig, Suited, passing, rethink
from easydistill.synthesis.operators.cogpo.student_tries import Chain, Tries, alone
from easydistill.synthesis.replies import Unusable, answered, rejection
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import find_answer
from easydistill.verification.equality import Verdict, Verifier

STAGE = "cogpo"
PROMPTS = (*cot_generation.PROMPTS, _student_tries.PROMPT, _critic.PROMPT, *_rethinking.PROMPTS)
REASONS = (
    *("answer_unknown", "truncated", "no_final_answer", "undecided", "wrong_answer"),
    *("malformed_reply", "unknown_label", "no_majority", "unfit_length", "answer_changed", "not_derived"),
    *("still_easy", "still_hard", "no_pair"),
)
LABELLED = None
MAKES_PROMPTS = False
PAIRS = True
SFT = "sft"
ALSO = (SFT,)
Gap = Literal["small", "medium", "large"]
GAPS: tuple[Gap, ...] = ("small", "medium", "large")
_OF_PAIRS = frozenset({"prompt", "chosen", "rejected", "beta"})
"""Fields of a pair's own; a row's fields of these names are left out."""


class Config(RethinkingConfig):
    """Where chains come from, and which pairs are made of them."""

    identity_name = "operator.cogpo"

    use_outputs: bool = True
    """Take a row's own answer as the teacher's chain. Off: the teacher writes all chains, and a row's own answer only
    tells the final one."""
    wrong_answers: PositiveInt = 2
    """Most of the student's wrong answers to a problem that become rejected answers."""
    beta_small: Beta = 0.1
    """β of small gaps, right against right, of which one suits the student: how much a pair may move it."""
    beta_medium: Beta = 0.2
    """β of medium gaps, right but unsuited against wrong."""
    beta_large: Beta = 0.5
    """β of large gaps, right and suited against wrong."""

    def beta(self, gap: Gap) -> float:
        return {"small": self.beta_small, "medium": self.beta_medium, "large": self.beta_large}[gap]


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Make pairs of each problem.

    Args:
        rows: problems with known final answers, and perhaps the teacher's chains.
    """
    problems: dict[int, Unusable] = {}
    with Verifier() as verifier:
        chains = yield from passing(problems, dict(enumerate(rows)), partial(_chains, config, tools, verifier))
        tried = yield from passing(problems, chains, partial(alone, config, verifier))
        asked = {number: (chains[number], tries) for number, tries in tried.items()}
        labelled = yield from passing(problems, asked, partial(criticise, config, tools, verifier))
        suited = yield from passing(problems, labelled, partial(rethink, config, tools, verifier))
    result = Result(also={SFT: []})
    for number, row in enumerate(rows):
        pairs: list[Sample] = []
        if number in suited:
            result.also[SFT].append(_sft_row(suited[number]))
            pairs = list(_pairs(config, suited[number]))
            if not pairs:
                problems[number] = Unusable("no_pair", "the chain suits the student, and no answer of its is wrong")
        result.accepted += pairs
        if number in problems:
            result.rejected.append(_refused(row, problems[number]))
    result.entered = len(result.accepted) + len(result.rejected)
    result.facts = _facts(rows, result, len(chains), tried, labelled, suited)
    return result


def _chains(config: Config, tools: Tools, verifier: Verifier, rows: Sequence[Sample]) -> Steps[list[Chain | Unusable]]:
    """The teacher's chains, those whose final answers are right."""
    known = [known_answer(row, config.strategies) for row in rows]
    missing = [
        number
        for number, (row, answer) in enumerate(zip(rows, known, strict=True))
        if answer is not None and (row.answer is None or not config.use_outputs)
    ]
    asked = [cot_generation.question(rows[number], tools, boxed=config.boxed) for number in missing]
    answers = (yield asked) if asked else []
    replies = dict(zip(missing, answers, strict=True))
    made = [
        _read(config, row, answer, replies.get(number))
        for number, (row, answer) in enumerate(zip(rows, known, strict=True))
    ]
    verdicts = iter(verifier.verify_many((item[0].known, item[1]) for item in made if not isinstance(item, Unusable)))
    return [
        item if isinstance(item, Unusable) else _right(*item, next(verdicts), replies.get(number))
        for number, item in enumerate(made)
    ]


def _read(config: Config, row: Sample, known: str | None, reply: Reply | None) -> tuple[Chain, str] | Unusable:
    """A chain of thought and its final answer, the teacher's reply or a row's own."""
    if known is None:
        return Unusable("answer_unknown", "the problem has no known answer to check chains against")
    try:
        chain = Chain(row if reply is None else answered(row, reply), known)
    except Unusable as problem:
        return problem
    found = find_answer(chain.row.answer or "", config.strategies)
    if found is None:
        return Unusable("no_final_answer", "the teacher's chain has no final answer", *_received(reply))
    return chain, found.text


def _right(chain: Chain, said: str, verdict: Verdict, reply: Reply | None) -> Chain | Unusable:
    if verdict.equal:
        return chain
    if verdict.outcome == "undecided":
        return Unusable("undecided", f"{said!r} beside {chain.known!r}: {verdict.reason}", *_received(reply))
    return Unusable("wrong_answer", f"{said!r} where {chain.known!r} is right", *_received(reply))


def _received(reply: Reply | None) -> tuple[Reply, ...]:
    return () if reply is None else (reply,)


# --- rows ---------------------------------------------------------------------------------------------------------


def _pairs(config: Config, suited: Suited) -> Iterator[Sample]:
    first, last = (item.chain.row.messages[-1] for item in (suited.first, suited.last))
    wrong = suited.first.alone.wrong[: config.wrong_answers]
    if suited.rewritten:
        # Rounds there and back may end where they began.
        if first != last:
            yield _pair(config, suited, "small", 0, last, first)
        for number, answer in enumerate(wrong):
            yield _pair(config, suited, "medium", number, first, answer)
    for number, answer in enumerate(wrong):
        yield _pair(config, suited, "large", number, last, answer)


def _pair(config: Config, suited: Suited, gap: Gap, number: int, chosen: Message, rejected: Message) -> Sample:
    row = suited.first.chain.row
    rewritten = suited.rewritten and gap != "medium"
    meta = {
        **{name: value for name, value in row.meta.items() if name not in _OF_PAIRS},
        "operator": STAGE,
        "source": row.id,
        "gap": gap,
        "beta": config.beta(gap),
        "rejected": rejected,
        "chosen_by": "rethinker" if rewritten else "teacher",
        "rejected_by": "teacher" if gap == "small" else "student",
        "final_answer": suited.first.chain.known,
        **_of_critic(suited),
    }
    return Sample(f"{row.id}-{gap}-{number + 1}", (*row.prompt, chosen), meta)


def _sft_row(suited: Suited) -> Sample:
    row = suited.last.chain.row
    return replace(row, meta={**row.meta, "operator": STAGE, **_of_critic(suited)})


def _of_critic(suited: Suited) -> dict[str, Any]:
    return {
        "label": suited.first.label,
        "rounds": suited.rounds,
        "pass_rate": round(suited.first.alone.rate, 4),
        "pass_rate_with_chain": round(suited.last.shown.rate, 4),
    }


def _refused(row: Sample, problem: Unusable) -> Rejection:
    if problem.replies:
        return rejection(row.id, STAGE, problem, *problem.replies)
    return Rejection(row.id, STAGE, problem.reason, problem.detail, 1, list(row.messages))


# --- figures ------------------------------------------------------------------------------------------------------


def _facts(
    rows: Sequence[Sample],
    result: Result,
    right: int,
    tried: dict[int, Tries],
    labelled: dict[int, Labelled],
    suited: dict[int, Suited],
) -> dict[str, Any]:
    gaps = Counter(pair.meta["gap"] for pair in result.accepted)
    before = Counter(item.label for item in labelled.values())
    rounds = Counter(item.rounds for item in suited.values())
    kinds: Counter[str] = sum((tries.kinds for tries in tried.values()), Counter())
    return {
        "problems": len(rows),
        "chains_right": right,
        "labels_before": {label: before[label] for label in LABELS},
        "suits_after": {label: sum(item.first.label == label for item in suited.values()) for label in LABELS},
        "rounds": {str(number): count for number, count in sorted(rounds.items())},
        "pairs": {gap: gaps[gap] for gap in GAPS},
        "sft_rows": len(result.also[SFT]),
        "pass_rate": {
            "alone": _mean([tries.rate for tries in tried.values()]),
            # Of the same problems as after: otherwise dropping the hopeless ones would look like progress.
            "with_chain_before": _mean([item.first.shown.rate for item in suited.values()]),
            "with_chain_after": _mean([item.last.shown.rate for item in suited.values()]),
        },
        "student_tries": dict(sorted(kinds.items())),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None
