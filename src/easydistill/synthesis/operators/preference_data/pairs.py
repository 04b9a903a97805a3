"""Answers to a row's prompt and the pairs that are possible among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from easydistill.contracts.operator import Ask, Reply, Role
from easydistill.data.records import Message, Sample, answer_message
from easydistill.synthesis.chains import length_of
from easydistill.synthesis.operators.preference_data.configs import SampledConfig, heats_of
from easydistill.synthesis.replies import Unusable, text_of

BY_ROW = "row"
"""Who wrote an answer that a row brought along."""


@dataclass(frozen=True)
class Answer:
    """An answer to a row's prompt."""

    message: Message
    by: str
    """`teacher`, `student` or `row`."""
    name: str
    """Tells it from the row's other answers."""
    truncated: bool = False

    @property
    def text(self) -> str:
        return self.message["content"]

    @cached_property
    def length(self) -> int:
        """Words (Chinese: characters), separate thoughts included."""
        return length_of(self.text) + length_of(self.message.get("reasoning_content", ""))


@dataclass(frozen=True)
class Pair:
    """Two answers, the better one first."""

    chosen: Answer
    rejected: Answer
    scores: tuple[float, float] | None = None
    """Theirs; None where nobody gave any."""

    @property
    def margin(self) -> float | None:
        return None if self.scores is None else self.scores[0] - self.scores[1]

    @property
    def difference(self) -> int:
        """Words by which the chosen answer is longer."""
        return self.chosen.length - self.rejected.length

    @property
    def direction(self) -> int:
        """1 where the chosen answer is the longer one, −1 where it is the shorter one, else 0."""
        return (self.difference > 0) - (self.difference < 0)

    @property
    def length_ratio(self) -> float:
        """Length of the longer answer over that of the shorter one."""
        shorter, longer = sorted((self.chosen.length, self.rejected.length))
        return longer / max(1, shorter)

    @property
    def name(self) -> str:
        return f"{self.chosen.name} > {self.rejected.name}"


@dataclass
class Prospects:
    """What came of one row."""

    row: Sample
    answers: list[Answer] = field(default_factory=list)
    """Those that can be used."""
    pairs: list[Pair] = field(default_factory=list)
    """Possible ones."""
    dropped_answers: list[Unusable] = field(default_factory=list)
    dropped_pairs: list[Unusable] = field(default_factory=list)
    blocked: Unusable | None = None
    """Why there can be no pair, where neither an answer nor a pair is to blame."""
    replies: list[Reply] = field(default_factory=list)
    """All that was received for the row."""


def sample(
    role: Role, messages: tuple[Message, ...], count: int, temperatures: Sequence[float] = ()
) -> list[tuple[str, Ask]]:
    """(name, question) of each sample of a model."""
    return [
        (f"{role}-{number + 1}", Ask(messages, role, number, temperature=heat))
        for number, heat in enumerate(heats_of(temperatures, count))
    ]


def given(config: SampledConfig, row: Sample) -> list[Answer]:
    if not config.given_answers or not (row.answer or "").strip():
        return []
    return [Answer(row.messages[-1], BY_ROW, BY_ROW)]


def collect(
    found: Prospects,
    asked: Sequence[tuple[str, Ask]],
    replies: Sequence[Reply],
    *,
    cut_off: bool = False,
) -> None:
    """Take in what models answered; what is cut off (unless `cut_off`) or was said before is dropped."""
    found.replies += replies
    seen = {_spelling(answer): answer.name for answer in found.answers}
    for (name, ask), reply in zip(asked, replies, strict=True):
        truncated = cut_off and reply.finish_reason == "length"
        try:
            text = text_of(replace(reply, finish_reason=None) if truncated else reply)
            answer = Answer(answer_message(text, reply.reasoning), ask.role, name, truncated)
            earlier = seen.setdefault(_spelling(answer), name)
            if earlier != name:
                raise Unusable("duplicate", f"{name} says the same as {earlier}", reply)
        except Unusable as problem:
            found.dropped_answers.append(problem)
        else:
            found.answers.append(answer)


def _spelling(answer: Answer) -> str:
    return " ".join(answer.text.split())
