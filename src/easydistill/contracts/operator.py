"""What an operator is: a generator that asks models in waves and ends with rows.

    def run(config, rows, tools) -> Steps[Result]:
        replies = yield [Ask(messages) for row in rows]      # a wave: answered together, journalled, never asked twice
        more = yield [...]
        return Result(...)

An operator never talks to a model itself, and its arguments and the replies are its only input, so running it again
over journalled replies gives the same questions and the same rows: this is how a run resumes. Work on each row by
itself is a generator for one row, run side by side with the others by `each`. Operators without questions return at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from easydistill.config.base import NonEmptyStr, Section, Seed
from easydistill.data.messages import HasChat, Message, Tool, ToolCall
from easydistill.data.records import Rejection, Sample
from easydistill.data.spool import Rows
from easydistill.errors import DataError
from easydistill.registry import Contract

if TYPE_CHECKING:
    import random

T = TypeVar("T")
S = TypeVar("S")
Role = Literal["teacher", "judge", "student", "user", "tools"]
"""Who is asked: `user` plays the person in a chat, and `tools` answers the calls in it."""


@dataclass(frozen=True)
class Ask:
    """A question to one of the job's models."""

    messages: tuple[Message, ...]
    role: Role = "teacher"
    index: int = 0
    """Number of the sample, where one prompt is sampled several times."""
    schema: dict[str, Any] | None = None
    """JSON schema of the reply, for servers that support it; the operator checks whether it was obeyed."""
    temperature: float | None = None
    """Sampling temperature of this reply; None uses the model's."""
    tools: tuple[Tool, ...] = field(default=(), kw_only=True)
    """The tools that the reply may call."""
    template_kwargs: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Variables of the chat template that a row brings."""

    @classmethod
    def of(cls, chat: HasChat, role: Role = "teacher", index: int = 0, temperature: float | None = None) -> Ask:
        """The question for the next message of a chat."""
        return cls(
            chat.messages,
            role,
            index,
            temperature=temperature,
            tools=chat.tools,
            template_kwargs=chat.template_kwargs,
        )


@dataclass(frozen=True)
class Reply:
    """The reply to an `Ask`: a text, or the reason why there is none."""

    text: str | None
    reasoning: str | None = None
    """The model's reasoning, if its server returns it separately."""
    finish_reason: str | None = None
    problem: tuple[str, str] | None = None
    """(reason, detail) if there is no usable text."""
    raw: Any = None
    key: str | None = None
    """Key of the request that it answers."""
    tool_calls: tuple[ToolCall, ...] = field(default=(), kw_only=True)
    """The calls that it makes, where the question brought tools; the text may then be empty."""


Steps = Generator[list[Ask], list[Reply], T]


class UnfitRows(DataError):
    """The rows lack something that the operator needs. The stage that runs it adds where they come from."""


@dataclass
class Result:
    """Rows that passed every check, and rejected ones with the reason."""

    accepted: Rows[Sample] = field(default_factory=list)
    rejected: Rows[Rejection] = field(default_factory=list)
    entered: int = 0
    """Number of candidates, accepted and rejected together."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures for the report: counts, shares, distributions."""
    also: dict[str, list[Sample]] = field(default_factory=dict)
    """Rows of other kinds by the names in the operator's `ALSO`, each written to a file of its own."""

    def add(self, other: Result) -> None:
        """Add another result's rows; its facts are left to the caller."""
        self.accepted.extend(other.accepted)
        self.rejected.extend(other.rejected)
        self.entered += other.entered


def each(items: Iterable[S], steps_of: Callable[[S], Steps[T]]) -> Steps[list[T]]:
    """Run one generator per item side by side: the first questions of all items in one wave, then the second ones.

    Returns what each generator returned, in the order of the items.
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
    """Run an operator to its end, answering its questions with `answer`."""
    try:
        asks = next(steps)
        while True:
            asks = steps.send(answer(asks))
    except StopIteration as end:
        value: T = end.value
        return value


class PromptText(Section):
    """A prompt written into the config instead of a file."""

    text: NonEmptyStr
    """The Jinja template."""


class OperatorConfig(Section):
    """Settings of every operator that asks a model."""

    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the prompts; `auto` takes that of the row."""
    prompts: dict[str, NonEmptyStr | PromptText] = {}  # noqa: RUF012 (pydantic copies it)
    """Replacements of built-in prompts, by the prompt's name: a file, or `{"text": …}` with the template itself."""
    reply: Literal["tags", "json", "plain"] = "tags"
    """Form in which the model is asked to reply: `tags` such as `<instruction>…</instruction>`, `json`, which a model
    on this machine is then unable to miss, or `plain`, the whole reply as one text (scores are JSON even so)."""
    seed: Seed = 0
    """Seed of every random choice that the job makes."""


class Tools(Protocol):
    """What an operator that asks models receives in addition to its config and rows."""

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
        """Make a question from a prompt.

        Args:
            name: of the prompt.
            text: decides the language if the config leaves it to the row.
            wants: the fields of the reply, or its scores with their ranges; the prompt's `form` says how to give them.
            role: the model to ask.
            index: number of the sample, if one prompt is sampled several times.
            before: messages to put first.
            choices: the values that a field may have; the schema allows no others.
            values: the prompt's other variables.
        """

    def random(self, *of: Any) -> random.Random:
        """A random stream that depends only on the seed and the arguments, such as a row's id."""


class OperatorModule(Protocol):
    """A module registered as an operator. Each operator is a job of the same name."""

    Config: Any
    """The class of its `synthesis` section: a `Section`, an `OperatorConfig` if it asks models, or a union of such."""
    REASONS: tuple[str, ...]
    """Reasons for which it rejects candidates, in the order in which it checks them."""

    def run(self, config: Section, rows: Sequence[Sample], tools: Tools | None) -> Steps[Result]:
        """The operator. `tools` is None where its config is not an `OperatorConfig`."""


class OperatorDefaults:
    """What an operator's module may also declare."""

    PROMPTS: tuple[str, ...] = ()
    """Names of the prompts that it uses: `<name>.<language>.txt` or `<name>.txt` in the folder `prompts/` beside the
    module."""
    LABELLED: bool | None = None
    """Whether it reads rows with answers (True), prompts without answers (False), or rows as they are (None)."""
    MAKES_PROMPTS: bool = False
    """Whether its rows hold new prompts, whose diversity the report compares with that of the seeds."""
    PAIRS: bool = False
    """Whether its rows are pairs: a row ends with the chosen answer, and `meta["rejected"]` is the other message."""
    ALSO: tuple[str, ...] = ()
    """Names of the other kinds of rows that it makes, in `Result.also`."""
    SHOWS_IMAGES: tuple[Role, ...] = ()
    """Roles whose questions show the images of rows. If one of these models sees none, rows with images are refused."""
    KEEPS_IMAGES: bool = False
    """Whether rows keep their images though no model is shown them. Without it, and without `SHOWS_IMAGES`, rows with
    images are refused."""
    REFUSES_IMAGES: str = ""
    """Why they are refused, and what to do; by default that the operator reads text alone."""
    IDENTITY: str = ""
    """Its name in fingerprints, if it was renamed; defaults to its name."""
    SUMMARY: str = ""
    """What its job does, in one line; defaults to the first line of the module's docstring."""

    @staticmethod
    def files(config: Section) -> dict[str, str]:
        """Files named in the config, by key: they must exist before a run."""
        return {}

    @staticmethod
    def row_files(config: Section) -> dict[str, str]:
        """Paths of rows named in the config, by key: they must be readable before a run."""
        return {}

    @staticmethod
    def most_asks(config: Section) -> int | None:
        """Most questions that a run may need, for `plan`; None if that depends on the answers."""
        return None


OPERATOR = Contract(OperatorModule, OperatorDefaults)
