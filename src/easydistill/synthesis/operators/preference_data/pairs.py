"""Answers to a row's prompt, and the pairs that can be made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from easydistill.contracts.operator import Ask, Reply, Role
from easydistill.data.messages import HasChat, Message, said, says_something
from easydistill.data.records import Sample
from easydistill.synthesis.chains import length_of
from easydistill.synthesis.operators.preference_data.configs import SampledConfig, sample_temperatures
from easydistill.synthesis.replies import Unusable, message_of

BY_ROW = "row"
"""Author of a row's own answer."""


@dataclass(frozen=True)
class Answer:
    """An answer to a row's prompt."""

    message: Message
    by: str
    """`teacher`, `student` or `row`."""
    name: str
    """Unique among the row's answers."""
    truncated: bool = False

    @property
    def text(self) -> str:
        """What it says: its content, and its calls."""
        return said(self.message)

    @cached_property
    def length(self) -> int:
        """Words (Chinese: characters), separate reasoning included."""
        return length_of(self.text) + length_of(self.message.get("reasoning_content", ""))


@dataclass(frozen=True)
class Pair:
    """Two answers, the better one first."""

    chosen: Answer
    rejected: Answer
    scores: tuple[float, float] | None = None
    """Scores of both, in the same order; None if they were not scored."""

    @property
    def margin(self) -> float | None:
        return None if self.scores is None else self.scores[0] - self.scores[1]

    @property
    def difference(self) -> int:
        """Words by which the chosen answer is longer."""
        return self.chosen.length - self.rejected.length

    @property
    def direction(self) -> int:
        """1 if the chosen answer is longer, −1 if it is shorter, else 0."""
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
class RowPairs:
    """The answers and possible pairs of one row."""

    row: Sample
    answers: list[Answer] = field(default_factory=list)
    """Usable answers."""
    pairs: list[Pair] = field(default_factory=list)
    """Possible pairs."""
    dropped_answers: list[Unusable] = field(default_factory=list)
    dropped_pairs: list[Unusable] = field(default_factory=list)
    blocked: Unusable | None = None
    """Why there can be no pair, if that is not due to a single answer or pair."""
    replies: list[Reply] = field(default_factory=list)
    """All replies received for the row."""


def sample(role: Role, chat: HasChat, count: int, temperatures: Sequence[float] = ()) -> list[tuple[str, Ask]]:
    """(name, request) of each of `count` samples of a model."""
    return [
        (f"{role}-{number + 1}", Ask.of(chat, role, number, temperature))
        for number, temperature in enumerate(sample_temperatures(temperatures, count))
    ]


def given(config: SampledConfig, row: Sample) -> list[Answer]:
    """The row's own answer, if it has one that is to be used."""
    if not config.given_answers or row.answer is None or not says_something(row.messages[-1]):
        return []
    return [Answer(row.messages[-1], BY_ROW, BY_ROW)]


def collect(
    found: RowPairs,
    asked: Sequence[tuple[str, Ask]],
    replies: Sequence[Reply],
    *,
    keep_truncated: bool = False,
) -> None:
    """Add the models' answers; duplicates are dropped, and truncated ones unless `keep_truncated`."""
    found.replies += replies
    seen = {_spelling(answer): answer.name for answer in found.answers}
    for (name, ask), reply in zip(asked, replies, strict=True):
        truncated = keep_truncated and reply.finish_reason == "length"
        try:
            message = message_of(replace(reply, finish_reason=None) if truncated else reply)
            answer = Answer(message, ask.role, name, truncated)
            earlier = seen.setdefault(_spelling(answer), name)
            if earlier != name:
                raise Unusable("duplicate", f"{name} says the same as {earlier}", reply)
        except Unusable as problem:
            found.dropped_answers.append(problem)
        else:
            found.answers.append(answer)


def _spelling(answer: Answer) -> str:
    return " ".join(answer.text.split())
