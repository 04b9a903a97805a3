"""The critic labels right chains of thought for one student (CogPO, arXiv 2504.09802): easy, medium or hard.

An `easy` chain is too brief for the student, a `medium` one suits it, a `hard` one is too convoluted. The prompt says
how often the student solves the problem alone, and how often with the chain. The critic votes several times, and an
absolute majority decides; a chain without one is dropped as `no_majority`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from easydistill.config.base import PositiveInt
from easydistill.contracts.operator import Reply, Steps
from easydistill.synthesis.chains import thought_of
from easydistill.synthesis.images import ask_about
from easydistill.synthesis.operators.cogpo.student_tries import Chain, Tries, TriesConfig, try_with_chain
from easydistill.synthesis.replies import Unusable, field_of
from easydistill.synthesis.text import prompt_text
from easydistill.synthesis.tools import Tools
from easydistill.verification.equality import Verifier

PROMPT = "cot_critic"
LABELS = ("easy", "medium", "hard")
SUITS = "medium"


class CriticConfig(TriesConfig):
    """How chains are labelled."""

    votes: PositiveInt = 3
    """Votes of the critic per chain. They are samples: with temperature 0 all votes would be the same."""


@dataclass(frozen=True)
class Labelled:
    """A chain with the critic's label for this student."""

    chain: Chain
    label: str
    alone: Tries
    shown: Tries
    """The student's tries with the chain shown."""
    votes: tuple[Reply, ...]
    """The critic's replies."""


def criticise(
    config: CriticConfig, tools: Tools, verifier: Verifier, chains: Sequence[tuple[Chain, Tries]]
) -> Steps[list[Labelled | Unusable]]:
    """Label each chain.

    Args:
        chains: each with the student's tries at its problem without the chain.
    """
    tried = yield from try_with_chain(config, tools, verifier, [chain for chain, _ in chains])
    asked = [
        (chain, alone, shown)
        for (chain, alone), shown in zip(chains, tried, strict=True)
        if not isinstance(shown, Unusable)
    ]
    replies = yield [
        ask_about(
            tools,
            PROMPT,
            chain.row,
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
        cast = next(votes)
        label = majority(config, cast)
        found.append(label if isinstance(label, Unusable) else Labelled(chain, label, alone, shown, tuple(cast)))
    return found


def majority(config: CriticConfig, replies: Sequence[Reply]) -> str | Unusable:
    """The label given by more than half of all replies, including unusable ones."""
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
    # An unusable reply is reported first: asking again may give a majority.
    shares = ", ".join(f"{label} {counts[label]}" for label in LABELS if counts[label])
    return problem or Unusable("no_majority", f"the critic's votes: {shares}", *replies)


def _label(config: CriticConfig, reply: Reply) -> str:
    text = field_of(reply, "label", config.reply)
    label = text.strip(" .。\"'`*").casefold()
    if label not in LABELS:
        raise Unusable("unknown_label", f"{text[:80]!r} is none of {', '.join(LABELS)}", reply)
    return label
