"""A critic labels right chains of thought for one student (CogPO, arXiv 2504.09802): easy, medium or hard.

`easy` is too thin for it, `medium` suits it, `hard` is too convoluted. The critic is told how often the student solves
the problem alone, and how often with the chain before it. It votes several times; more than half of all votes decide.
Where none has so many, the chain is dropped as `no_majority`: nothing says that it suits the student.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from easydistill.config.base import PositiveInt
from easydistill.contracts.operator import Reply, Steps
from easydistill.synthesis.chains import thought_of
from easydistill.synthesis.operators.cogpo.student_tries import Chain, Tries, TriesConfig, with_chain
from easydistill.synthesis.replies import Unusable, field_of
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.equality import Verifier

PROMPT = "cot_critic"
LABELS = ("easy", "medium", "hard")
SUITS = "medium"


class CriticConfig(TriesConfig):
    """How chains are judged."""

    votes: PositiveInt = 3
    """How often the critic is asked about a chain. Let it sample (temperature above 0), else all votes are one."""


@dataclass(frozen=True)
class Labelled:
    """A chain with what the critic says of it for this student."""

    chain: Chain
    label: str
    alone: Tries
    shown: Tries
    """The student's tries with the chain before it."""
    votes: tuple[Reply, ...]
    """What the critic said."""


def criticise(
    config: CriticConfig, tools: Tools, verifier: Verifier, chains: Sequence[tuple[Chain, Tries]]
) -> Steps[list[Labelled | Unusable]]:
    """Label each chain, given with the student's tries at its problem alone."""
    tried = yield from with_chain(config, tools, verifier, [chain for chain, _ in chains])
    asked = [
        (chain, alone, shown)
        for (chain, alone), shown in zip(chains, tried, strict=True)
        if not isinstance(shown, Unusable)
    ]
    replies = yield [
        tools.ask(
            PROMPT,
            prompt_text(chain.row),
            ("label",),
            role="judge",
            index=number,
            choices=LABELS,
            instruction=prompt_text(chain.row),
            thought=thought_of(chain.row),
            alone=alone,
            shown=shown,
        )
        for chain, alone, shown in asked
        for number in range(config.votes)
    ]
    votes = iter([replies[start : start + config.votes] for start in range(0, len(replies), config.votes)])
    found: list[Labelled | Unusable] = []
    for (chain, alone), shown in zip(chains, tried, strict=True):
        if isinstance(shown, Unusable):
            found.append(shown)
            continue
        said = next(votes)
        label = majority(config, said)
        found.append(label if isinstance(label, Unusable) else Labelled(chain, label, alone, shown, tuple(said)))
    return found


def majority(config: CriticConfig, replies: Sequence[Reply]) -> str | Unusable:
    """The label of more than half of the replies, unusable ones included."""
    counts: Counter[str] = Counter()
    problem: Unusable | None = None
    for reply in replies:
        try:
            counts[_label(config, reply)] += 1
        except Unusable as unusable:
            problem = problem or unusable
    for label, count in counts.items():
        if 2 * count > len(replies):
            return label
    # Where asking again may give a majority, that is to blame.
    told = ", ".join(f"{label} {counts[label]}" for label in LABELS if counts[label])
    return problem or Unusable("no_majority", f"the critic's votes: {told}", *replies)


def _label(config: CriticConfig, reply: Reply) -> str:
    said = field_of(reply, "label", config.reply)
    label = said.strip(" .。\"'`*").casefold()
    if label not in LABELS:
        raise Unusable("unknown_label", f"{said[:80]!r} is none of {', '.join(LABELS)}", reply)
    return label
