"""Rewrites chains of thought until they suit one student (CogPO's rethinker and verifier, arXiv 2504.09802).

In each round, chains that are too easy are extended and chains that are too hard are simplified. A new chain is
suitable if its final answer still equals the known one, a judge derives that answer from the chain with the answer
redacted, and the critic labels it medium, given the student's tries with it. A right chain that is not suitable yet is
rewritten again in the next round. A chain that fails another check is discarded, and the next round takes another
sample of the same rewriting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, TypeVar

from pydantic import Field

from easydistill.config.base import PositiveFloat, PositiveInt, PositiveShare
from easydistill.contracts.operator import Reply, Steps
from easydistill.synthesis.chains import unchanged, verify, with_thought
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.operators import cot_long2short, cot_short2long
from easydistill.synthesis.operators.cogpo.critic import SUITS, CriticConfig, Labelled, criticise
from easydistill.synthesis.operators.cogpo.student_tries import Chain
from easydistill.synthesis.replies import Unusable, field_of
from easydistill.synthesis.rewriting import Limit, RewritingConfig, read, rewriting
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.answers import find_answer
from easydistill.verification.equality import Verifier
from easydistill.verification.plain import Verdict
from easydistill.verification.redaction import REDACTED

PROMPT = "cot_derivation"
PROMPTS = (PROMPT, *cot_short2long.PROMPTS, *cot_long2short.PROMPTS)

S = TypeVar("S")
T = TypeVar("T")


class RethinkingConfig(CriticConfig):
    """How often and how far chains are rewritten."""

    rounds: PositiveInt = 3
    """Maximum number of rewriting rounds, after which a problem without a suitable chain is dropped."""
    shortest_extension: Annotated[PositiveFloat, Field(gt=1)] = 1.1
    """Minimum length in words of an extended chain, as a multiple of the old one's."""
    longest_simplification: Annotated[PositiveShare, Field(lt=1)] = 0.9
    """Maximum length in words of a simplified chain, as a share of the old one's."""


@dataclass(frozen=True)
class Suited:
    """A chain that suits the student."""

    first: Labelled
    """The teacher's own chain."""
    last: Labelled
    """The suitable chain; the same as `first` if no round was needed."""
    rounds: int

    @property
    def rewritten(self) -> bool:
        return self.rounds > 0


def run_step(
    problems: dict[int, Unusable], items: dict[int, S], step: Callable[[list[S]], Steps[list[T | Unusable]]]
) -> Steps[dict[int, T]]:
    """Run a step on numbered items and return those that pass it; why the others fail is put into `problems`."""
    found = (yield from step(list(items.values()))) if items else []
    kept: dict[int, T] = {}
    for number, value in zip(items, found, strict=True):
        if isinstance(value, Unusable):
            problems[number] = value
        else:
            kept[number] = value
    return kept


def rethink(
    config: RethinkingConfig, tools: Tools, verifier: Verifier, items: Sequence[Labelled]
) -> Steps[list[Suited | Unusable]]:
    """Rewrite each chain until it suits; chains labelled medium stay as they are.

    A chain that fails one check is not taken to the next, which would cost requests.

    Returns:
        For each item the suitable chain, or why the last round failed.
    """
    now = dict(enumerate(items))
    done = {number: Suited(item, item, 0) for number, item in now.items() if item.label == SUITS}
    problems: dict[int, Unusable] = {}
    for turn in range(1, config.rounds + 1):
        pending = {number: item for number, item in now.items() if number not in done}
        if not pending:
            break
        fresh = yield from run_step(problems, pending, partial(_rewrite, config, turn, tools, verifier))
        sound = yield from run_step(problems, fresh, partial(_derive, config, tools, verifier))
        judged = yield from run_step(
            problems,
            {number: (chain, now[number].alone) for number, chain in sound.items()},
            partial(criticise, config, tools, verifier),
        )
        for number, item in judged.items():
            now[number] = item
            if item.label == SUITS:
                done[number] = Suited(items[number], item, turn)
            else:
                detail = f"after {turn} rounds the critic says {item.label}"
                problems[number] = Unusable(f"still_{item.label}", detail, *item.votes)
    return [done.get(number) or problems[number] for number in now]


def _rewrite(
    config: RethinkingConfig, turn: int, tools: Tools, verifier: Verifier, items: Sequence[Labelled]
) -> Steps[list[Chain | Unusable]]:
    """Longer or shorter chains with the same final answers."""
    ways = [_way(config, item.label) for item in items]
    replies = yield [
        rewriting(prompt, checks, item.chain.row, tools, turn - 1)
        for item, (prompt, checks, _) in zip(items, ways, strict=True)
    ]
    made = [
        read(checks, item.chain.row, item.chain.known, reply, limit)
        for item, (_, checks, limit), reply in zip(items, ways, replies, strict=True)
    ]
    return [
        _with_reply(new, reply)
        if isinstance(new, Unusable)
        else Chain(with_thought(item.chain.row, new.thought), item.chain.known)
        for item, reply, new in zip(items, replies, unchanged(made, verifier), strict=True)
    ]


def _way(config: RethinkingConfig, label: str) -> tuple[str, RewritingConfig, Limit]:
    """How to rewrite a chain with this label: (prompt, requirements, kind of length limit)."""
    easy = label == "easy"
    ratio = config.shortest_extension if easy else config.longest_simplification
    checks = RewritingConfig(ratio=ratio, reply=config.reply, boxed=config.boxed, strategies=config.strategies)
    return (cot_short2long.STAGE, checks, "at_least") if easy else (cot_long2short.STAGE, checks, "at_most")


def _derive(
    config: RethinkingConfig, tools: Tools, verifier: Verifier, chains: Sequence[Chain]
) -> Steps[list[Chain | Unusable]]:
    """The chains from which a judge derives the known answer."""
    replies = yield [
        ask_about(
            tools,
            PROMPT,
            chain.row,
            ("answer",),
            role="judge",
            instruction=prompt_text(chain.row),
            thought=chain.redacted,
            redacted=REDACTED,
        )
        for chain in chains
    ]
    answers = [_answer(config, reply) for reply in replies]
    pairs = [
        None if isinstance(answer, Unusable) else (chain.known, answer)
        for chain, answer in zip(chains, answers, strict=True)
    ]
    return [_derived(*item) for item in zip(chains, answers, verify(pairs, verifier), replies, strict=True)]


def _derived(chain: Chain, answer: str | Unusable, verdict: Verdict | None, reply: Reply) -> Chain | Unusable:
    if isinstance(answer, Unusable):
        return answer
    assert verdict is not None
    if verdict.equal:
        return chain
    if verdict.outcome == "undecided":
        return Unusable("undecided", f"{answer!r} against {chain.known!r}: {verdict.reason}", reply)
    return Unusable("not_derived", f"{answer!r} follows from the new chain, but {chain.known!r} is right", reply)


def _answer(config: RethinkingConfig, reply: Reply) -> str | Unusable:
    try:
        answer = field_of(reply, "answer", config.reply)
    except Unusable as problem:
        return problem
    found = find_answer(answer, config.strategies)
    return answer if found is None else found.text


def _with_reply(problem: Unusable, reply: Reply) -> Unusable:
    """The problem with the reply that caused it."""
    return problem if problem.replies else Unusable(problem.reason, problem.detail, reply)
