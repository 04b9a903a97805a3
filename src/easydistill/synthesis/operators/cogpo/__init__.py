"""Pairs for cognitive preference optimisation (CogPO, arXiv 2504.09802): chains of thought that suit one student.

    correct    the teacher's chains whose final answers verify; see `run`
    critic     labels a chain easy, medium or hard for this student; see `critic`
    rethinker  extends easy chains and simplifies hard ones until the critic says medium; see `rethinking`
    wrong      the student's own wrong answers; see `student_tries`

    gap      chosen                   rejected                  β
    small    rewritten                right, but easy or hard   0.1
    medium   right, but easy or hard  wrong                     0.2
    large    medium or rewritten      wrong                     0.5

The row of a pair ends with the chosen answer; `meta` has `rejected`, `beta`, `gap`, the problem's id as `source`, who
wrote each answer, and the critic's label. `also["sft"]` holds the suitable chains, for fine-tuning before the training
on pairs. A problem with a suitable chain that the student never fails gives an SFT row but no pair; it is rejected as
`no_pair`. Each problem is processed independently of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from statistics import fmean
from typing import Any, Literal

from easydistill.config.base import Beta, PositiveInt
from easydistill.contracts.operator import Reply, Result, Steps
from easydistill.data.messages import Message, text_of
from easydistill.data.records import FINISH_REASON, Rejection, Sample, cut_marks, is_cut
from easydistill.synthesis.chains import known_answer, verify
from easydistill.synthesis.operators import cot_generation
from easydistill.synthesis.operators.cogpo import critic as _critic
from easydistill.synthesis.operators.cogpo import rethinking as _rethinking
from easydistill.synthesis.operators.cogpo import student_tries as _student_tries
from easydistill.synthesis.operators.cogpo.critic import LABELS, Labelled, criticise
from easydistill.synthesis.operators.cogpo.rethinking import RethinkingConfig, Suited, rethink, run_step
from easydistill.synthesis.operators.cogpo.student_tries import Chain, Tries, try_alone
from easydistill.synthesis.replies import Unusable, answered, rejection
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import find_answer
from easydistill.verification.equality import Verifier
from easydistill.verification.plain import Verdict

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
SHOWS_IMAGES = ("teacher", "judge", "student")
SFT = "sft"
ALSO = (SFT,)
Gap = Literal["small", "medium", "large"]
GAPS: tuple[Gap, ...] = ("small", "medium", "large")
_PAIR_FIELDS = frozenset({"prompt", "chosen", "rejected", "beta", FINISH_REASON})
"""Fields of a pair; a problem's own fields of these names are dropped."""


class Config(RethinkingConfig):
    """Where chains come from, and which pairs are made from them."""

    identity_name = "operator.cogpo"

    use_outputs: bool = True
    """Use a row's own answer as the teacher's chain. If off, the teacher writes all chains, and a row's own answer is
    only used for its final answer."""
    wrong_answers: PositiveInt = 2
    """Maximum number of the student's wrong answers per problem that become rejected answers."""
    beta_small: Beta = 0.1
    """β of small gaps: a right, suitable chain over a right, unsuitable one."""
    beta_medium: Beta = 0.2
    """β of medium gaps: a right, unsuitable chain over a wrong answer."""
    beta_large: Beta = 0.5
    """β of large gaps: a right, suitable chain over a wrong answer."""

    def beta(self, gap: Gap) -> float:
        return {"small": self.beta_small, "medium": self.beta_medium, "large": self.beta_large}[gap]


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Make pairs of each problem.

    Args:
        rows: problems with known final answers, with or without the teacher's chains.
    """
    problems: dict[int, Unusable] = {}
    with Verifier() as verifier:
        chains = yield from run_step(problems, dict(enumerate(rows)), partial(_chains, config, tools, verifier))
        tried = yield from run_step(problems, chains, partial(try_alone, config, verifier))
        asked = {number: (chains[number], tries) for number, tries in tried.items()}
        labelled = yield from run_step(problems, asked, partial(criticise, config, tools, verifier))
        suited = yield from run_step(problems, labelled, partial(rethink, config, tools, verifier))
    result = Result(also={SFT: []})
    for number, row in enumerate(rows):
        pairs: list[Sample] = []
        if number in suited:
            result.also[SFT].append(_sft_row(suited[number]))
            pairs = list(_pairs(config, suited[number]))
            if not pairs:
                problems[number] = Unusable("no_pair", "the chain suits the student, which never answers wrongly")
        result.accepted.extend(pairs)
        if number in problems:
            result.rejected.append(_rejection(row, problems[number]))
    result.entered = len(result.accepted) + len(result.rejected)
    result.facts = _facts(rows, result, len(chains), tried, labelled, suited)
    return result


def _chains(config: Config, tools: Tools, verifier: Verifier, rows: Sequence[Sample]) -> Steps[list[Chain | Unusable]]:
    """The teacher's chains with right final answers."""
    known = [known_answer(row, config.strategies) for row in rows]
    replies = yield from _replies_for(config, tools, rows, known)
    made = [_read(config, *item) for item in zip(rows, known, replies, strict=True)]
    verdicts = verify([None if isinstance(item, Unusable) else (item[0].known, item[1]) for item in made], verifier)
    return [_verified(*item) for item in zip(made, verdicts, replies, strict=True)]


def _replies_for(
    config: Config, tools: Tools, rows: Sequence[Sample], known: Sequence[str | None]
) -> Steps[list[Reply | None]]:
    """The teacher's replies; None for rows whose own answer is used, and for those without a known one."""
    own = [config.use_outputs and row.answer is not None for row in rows]
    asked = [answer is not None and not has for answer, has in zip(known, own, strict=True)]
    asks = [cot_generation.question(row, tools, boxed=config.boxed) for row in compress(rows, asked)]
    replies = iter((yield asks) if asks else ())
    return [next(replies) if ask else None for ask in asked]


def _read(config: Config, row: Sample, known: str | None, reply: Reply | None) -> tuple[Chain, str] | Unusable:
    """A chain of thought, the teacher's reply or the row's own answer, and its final answer."""
    if known is None:
        return Unusable("answer_unknown", "the problem has no known answer to check chains against")
    try:
        chain = Chain(row if reply is None else answered(row, reply), known)
    except Unusable as problem:
        return problem
    found = find_answer(chain.row.answer or "", config.strategies)
    if found is None:
        return Unusable("no_final_answer", "the teacher's chain has no final answer", *_replies(reply))
    return chain, found.text


def _verified(made: tuple[Chain, str] | Unusable, verdict: Verdict | None, reply: Reply | None) -> Chain | Unusable:
    """The chain if its final answer equals the known one."""
    if isinstance(made, Unusable):
        return made
    assert verdict is not None
    chain, final = made
    if verdict.equal:
        return chain
    if verdict.outcome == "undecided":
        return Unusable("undecided", f"{final!r} against {chain.known!r}: {verdict.reason}", *_replies(reply))
    return Unusable("wrong_answer", f"the answer is {final!r}, should be {chain.known!r}", *_replies(reply))


def _replies(reply: Reply | None) -> tuple[Reply, ...]:
    return () if reply is None else (reply,)


# --- rows ---------------------------------------------------------------------------------------------------------


def _pairs(config: Config, suited: Suited) -> Iterator[Sample]:
    first, last = (item.chain.row.messages[-1] for item in (suited.first, suited.last))
    wrong = suited.first.alone.wrong[: config.wrong_answers]
    if suited.rewritten:
        # A chain that was extended and then simplified may end up as it was.
        if first != last:
            yield _pair(config, suited, "small", 0, last, first)
        for number, answer in enumerate(wrong):
            yield _pair(config, suited, "medium", number, first, answer)
    for number, answer in enumerate(wrong):
        yield _pair(config, suited, "large", number, last, answer)


def _pair(config: Config, suited: Suited, gap: Gap, number: int, chosen: Message, rejected: Message) -> Sample:
    row = suited.first.chain.row
    rewritten = suited.rewritten and gap != "medium"
    own = row.messages[-1] if is_cut(row) else None
    rejected_cut = rejected == own if gap == "small" else text_of(rejected) in suited.first.alone.cut
    meta = {
        **{name: value for name, value in row.meta.items() if name not in _PAIR_FIELDS},
        "operator": STAGE,
        "source": row.id,
        "gap": gap,
        "beta": config.beta(gap),
        "rejected": rejected,
        "chosen_by": "rethinker" if rewritten else "teacher",
        "rejected_by": "teacher" if gap == "small" else "student",
        "final_answer": suited.first.chain.known,
        **cut_marks(chosen=chosen == own, rejected=rejected_cut),
        **_critic_meta(suited),
    }
    return replace(row, id=f"{row.id}-{gap}-{number + 1}", messages=(*row.prompt, chosen), meta=meta)


def _sft_row(suited: Suited) -> Sample:
    row = suited.last.chain.row
    return replace(row, meta={**row.meta, "operator": STAGE, **_critic_meta(suited)})


def _critic_meta(suited: Suited) -> dict[str, Any]:
    return {
        "label": suited.first.label,
        "rounds": suited.rounds,
        "pass_rate": round(suited.first.alone.rate, 4),
        "pass_rate_with_chain": round(suited.last.shown.rate, 4),
    }


def _rejection(row: Sample, problem: Unusable) -> Rejection:
    if problem.replies:
        return rejection(row.id, STAGE, problem, *problem.replies)
    return Rejection(row.id, STAGE, problem.reason, problem.detail, 1, list(row.messages))


# --- metrics ------------------------------------------------------------------------------------------------------


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
    after = Counter(item.first.label for item in suited.values())
    rounds = Counter(item.rounds for item in suited.values())
    kinds: Counter[str] = sum((tries.kinds for tries in tried.values()), Counter())
    return {
        "problems": len(rows),
        "chains_right": right,
        "labels_before": _in_order(before, LABELS),
        "suits_after": _in_order(after, LABELS),
        "rounds": {str(number): count for number, count in sorted(rounds.items())},
        "pairs": _in_order(gaps, GAPS),
        "sft_rows": len(result.also[SFT]),
        "pass_rate": {
            "alone": _mean([tries.rate for tries in tried.values()]),
            # Over the same problems as after: otherwise dropping the hopeless ones would look like progress.
            "with_chain_before": _mean([item.first.shown.rate for item in suited.values()]),
            "with_chain_after": _mean([item.last.shown.rate for item in suited.values()]),
        },
        "student_tries": dict(sorted(kinds.items())),
    }


def _in_order(counts: Counter[str], names: Sequence[str]) -> dict[str, int]:
    return {name: counts[name] for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 4) if values else None
