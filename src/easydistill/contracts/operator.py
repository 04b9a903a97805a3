"""What an operator is: a generator that asks models in waves and ends with rows.

    def run(config, rows, tools) -> Steps[Result]:
        replies = yield [Ask(messages) for row in rows]      # a wave: answered together, journalled, never asked twice
        more = yield [...]
        return Result(...)

An operator never talks to a model itself and has no other input than its arguments and the replies, so running it
again over journalled replies gives the same asks and the same rows: that is how a run resumes. What works on each row
by itself is a generator for one row, run beside the others by `each`. Operators without questions return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from easydistill.config.base import NonEmptyStr, Section, Seed
from easydistill.data.records import Message, Rejection, Sample
from easydistill.errors import DataError
from easydistill.registry import Contract

if TYPE_CHECKING:
    import random

T = TypeVar("T")
S = TypeVar("S")
Role = Literal["teacher", "judge", "student"]


@dataclass(frozen=True)
class Ask:
    """A question to one of the job's models."""

    messages: tuple[Message, ...]
    role: Role = "teacher"
    index: int = 0
    """Number of the sample, where one prompt is sampled several times."""
    schema: dict[str, Any] | None = None
    """JSON schema of the reply, for servers that know such; whether it was obeyed is checked by whoever asked."""
    temperature: float | None = None
    """Sampling temperature of this one reply; None takes the model's."""


@dataclass(frozen=True)
class Reply:
    """What came of it: a text, or why there is none."""

    text: str | None
    reasoning: str | None = None
    """The model's separate thoughts, where its server tells them apart."""
    finish_reason: str | None = None
    problem: tuple[str, str] | None = None
    """(reason, detail) where there is no usable text."""
    raw: Any = None
    key: str | None = None
    """Of the request that it answers."""


Steps = Generator[list[Ask], list[Reply], T]


class UnfitRows(DataError):
    """The rows are not what the operator needs. Whoever runs it says where they come from."""


@dataclass
class Result:
    """Rows that passed every check, and those that did not, with the reason."""

    accepted: list[Sample] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    entered: int = 0
    """Candidates: accepted and rejected together."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures for the report: counts, shares, distributions."""
    also: dict[str, list[Sample]] = field(default_factory=dict)
    """Rows of other kinds by the names in the operator's `ALSO`, each written to a file of its own."""

    def add(self, other: Result) -> None:
        """Take another result's rows in; its facts are left to the caller."""
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.entered += other.entered


def each(items: Iterable[S], steps_of: Callable[[S], Steps[T]]) -> Steps[list[T]]:
    """Run one generator an item side by side: the first questions of all in one wave, then the second ones.

    Returns what each returned, in the items' order.
    """
    running = [steps_of(item) for item in items]
    results: dict[int, T] = {}
    waiting: dict[int, list[Reply] | None] = dict.fromkeys(range(len(running)))
    while waiting:
        asked: dict[int, list[Ask]] = {}
        for number, replies in waiting.items():
            try:
                asked[number] = next(running[number]) if replies is None else running[number].send(replies)
            except StopIteration as end:
                results[number] = end.value
        if not asked:
            break
        answered = yield [ask for asks in asked.values() for ask in asks]
        waiting, at = {}, 0
        for number, asks in asked.items():
            waiting[number] = answered[at : at + len(asks)]
            at += len(asks)
        assert at == len(answered), "as many replies as questions"
    return [results[number] for number in range(len(running))]


def answer_with(steps: Steps[T], answer: Callable[[Sequence[Ask]], list[Reply]]) -> T:
    """Drive an operator to its end."""
    try:
        asks = next(steps)
        while True:
            asks = steps.send(answer(asks))
    except StopIteration as end:
        value: T = end.value
        return value


class OperatorConfig(Section):
    """What every operator that asks a model has."""

    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the prompts; `auto` takes that of the row."""
    prompts: dict[str, NonEmptyStr] = {}  # noqa: RUF012 (pydantic copies it)
    """Files that replace built-in prompts, by the prompt's name."""
    reply: Literal["tags", "json", "plain"] = "tags"
    """How the model is asked to shape its reply. Local models are held to `json`. `plain` is a reply that is one text
    and nothing else; scores are then JSON."""
    seed: Seed = 0
    """Seed of every choice that the operator makes."""


class Tools(Protocol):
    """What an operator that asks models is given beside its config and rows."""

    def ask(
        self,
        name: str,
        text: str,
        wants: Sequence[str] | Mapping[str, tuple[int, int]] = (),
        *,
        role: Role = "teacher",
        index: int = 0,
        before: Sequence[Message] = (),
        choices: Sequence[str] = (),
        **values: Any,
    ) -> Ask:
        """A question made from a prompt.

        Args:
            name: of the prompt.
            text: decides the language where the config leaves it to the row.
            wants: the fields of the reply, or its scores with their ranges; the prompt's `form` says how to give them.
            role: who is asked.
            index: number of the sample, where one prompt is sampled several times.
            before: messages that come first.
            choices: what a field may be, where that is settled; a schema holds the model to it.
            values: of the prompt's other variables.
        """

    def random(self, *of: Any) -> random.Random:
        """A random stream of its own for what the arguments name, such as a row's id."""


class OperatorModule(Protocol):
    """A module registered as an operator. Each operator is a job of the same name."""

    Config: Any
    """The class of its `synthesis` section, a `Section`, or an `OperatorConfig` where it asks models; or a union."""
    REASONS: tuple[str, ...]
    """Reasons for which it rejects candidates, in the order in which it checks them."""

    def run(self, config: Section, rows: Sequence[Sample], tools: Tools | None) -> Steps[Result]:
        """The operator. `tools` is None where its config is not an `OperatorConfig`."""


class OperatorDefaults:
    """What an operator's module may declare beside that."""

    PROMPTS: tuple[str, ...] = ()
    """Names of the prompts that it asks with: `<name>.<language>.txt` or `<name>.txt` in the folder `prompts/` beside
    the module."""
    LABELLED: bool | None = None
    """Whether it takes rows with answers (True), prompts without their answers (False), or rows as they are (None)."""
    MAKES_PROMPTS: bool = False
    """Whether its rows hold new prompts, whose diversity the report then compares with the seeds'."""
    PAIRS: bool = False
    """Whether its rows are pairs: a row ends with the chosen answer, `meta["rejected"]` is the other one, a message."""
    ALSO: tuple[str, ...] = ()
    """Names of rows of other kinds that it makes, in `Result.also`."""
    IDENTITY: str = ""
    """What fingerprints call it, where it was renamed; by default its name."""
    SUMMARY: str = ""
    """What its job does, in a line; by default the first line of the module's docstring."""

    @staticmethod
    def files(config: Section) -> dict[str, str]:
        """Files that the config names, by key: they must be there before a run."""
        return {}

    @staticmethod
    def most_asks(config: Section) -> int | None:
        """Questions that a run may need at most, for `plan`; None where only the answers tell."""
        return None


OPERATOR = Contract(OperatorModule, OperatorDefaults)
