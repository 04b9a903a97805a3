"""What a task of the job `evaluate` is: rows → problems, and replies → scores.

A task is one module. It never asks a model: it says what a model is asked about a row, and what a reply is worth. How
replies are sampled stands in its config, whose defaults are the task's usual settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, Field, model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, PositiveInt, PositiveShare, Section, Seed, Unfit
from easydistill.config.extensions import names_itself
from easydistill.data.messages import Message
from easydistill.errors import ConfigIssue
from easydistill.registry import Contract

if TYPE_CHECKING:
    from types import ModuleType

    from easydistill.contracts.teacher import Teacher


def _part_of_a_name(value: str) -> str:
    if not value.strip() or set(value) & set("/\\"):
        raise Unfit("a task's name becomes part of a file's", "use letters, digits and marks other than slashes")
    return value


TaskName = Annotated[str, AfterValidator(_part_of_a_name)]
NonNegativeCount = Annotated[int, Field(strict=True, ge=0)]


class SampledTask(Section):
    """How a task's replies are sampled: what every task has."""

    name: TaskName | None = None
    """Its name in scores and report, for a task that is evaluated twice in one run; defaults to the task's own."""
    limit: PositiveInt | None = None
    """Use only the first rows; by default all."""
    max_new_tokens: PositiveInt = 1024
    """Longest reply, in the model's tokens. Longer ones are cut, scored as they are, and counted in the report."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveShare | None = None
    """Nucleus sampling, as in `inference`."""
    seed: Seed = 0
    """Seed of the replies."""
    samples: PositiveInt = 1
    """Replies to each problem. The score, pass@1, is their mean."""
    pass_at: list[PositiveInt] = []  # noqa: RUF012 (pydantic copies it)
    """Also estimate pass@k, the probability that one of k replies is right, for each of these k (unbiased: Chen et al.
    2021, equation 1)."""

    @property
    def shown_name(self) -> str:
        """The name in scores and report."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _samples_what_it_counts(self) -> SampledTask:
        if self.samples > 1 and self.temperature == 0:
            problem = f"{self.samples} greedy replies to a problem would be the same"
            raise Unfit(problem, "raise the temperature, such as to 0.6, or remove samples")
        if too_many := [k for k in self.pass_at if k > self.samples]:
            raise Unfit(f"pass@{too_many[0]} needs as many replies, and samples is {self.samples}", "raise samples")
        return self

    def sampling(self) -> dict[str, Any]:
        """The keys of an `inference` section that the task decides."""
        names = ("max_new_tokens", "temperature", "top_p", "seed")
        return {name: getattr(self, name) for name in names}


class TaskConfig(SampledTask):
    """Settings of every task of ours. Subclasses declare `task` as a literal."""

    needs_judge: ClassVar[bool] = False
    """Whether replies are scored by a judge model."""

    task: str
    """Which task this is."""
    data: NonEmptyStr
    """Its rows: a file, a folder, or a data set of the hub, as in `dataset.instruction_path`."""
    shots: NonNegativeCount = 0
    """Worked examples before each problem, as turns of the chat: the first rows of `shots_data`."""
    shots_data: NonEmptyStr | None = None
    """Where worked examples come from: rows of the task's form, which are not evaluated."""

    @property
    def shown_name(self) -> str:
        return self.name or self.task

    @property
    def scores_with_judge(self) -> bool:
        """Whether these settings need a judge model."""
        return self.needs_judge

    @model_validator(mode="after")
    def _has_shots(self) -> TaskConfig:
        if bool(self.shots) != (self.shots_data is not None):
            raise Unfit("shots and shots_data are given together or not at all", "set both, or remove both")
        return self


@dataclass(frozen=True)
class Problem:
    """A row of a task as models are asked it."""

    id: str
    """Unique within the task."""
    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What its score needs."""
    reference: str = ""
    """The right answer, as the report shows it."""
    text: str = ""
    """The problem's own words, without what the task adds to every prompt, which are sought in training rows; by
    default the last message."""


@dataclass(frozen=True)
class Reply:
    """What a model replied."""

    text: str
    """Without thoughts; empty if they never ended."""
    cut: bool = False
    """Whether it was cut off at `max_new_tokens`."""


UNJUDGED = "could not be judged"
"""The `why` of a score of 0 that says nothing of the reply: its judge refused, or wrote no score. They are counted."""


@dataclass(frozen=True)
class Score:
    """What a reply is worth."""

    value: float
    """From 0 to 1; 1 is right."""
    answer: str = ""
    """What was compared: the final answer, the program."""
    why: str = ""
    """Why it is wrong, in a few words."""
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Further figures: name → (points, of how many). A figure of the task is the sum of points over the sum of what
    there was to gain."""


@dataclass(frozen=True)
class ScoringContext:
    """What scorers may need beside their configs."""

    directory: Path
    """Where they may keep files of their own, which survive a kill."""
    judge: Teacher | None = None
    """The model that judges. Scorers do not close it."""
    judge_sampling: Mapping[str, Any] = field(default_factory=dict)
    judge_system_prompt: str | None = None
    redact: Callable[[Any], Any] = lambda value: value
    """Masks secrets in what scorers write."""


class Scorer(Protocol):
    """Scores replies."""

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        """A score for each reply, in the same order."""

    def close(self) -> None:
        """Free processes and files."""


class TaskModule(Protocol):
    """A module registered as a task. It loads no heavy library when it is imported."""

    Config: type[TaskConfig]
    """Its settings, with a field `task` of the type Literal["<its name>"]."""

    def problem(self, config: TaskConfig, row: Mapping[str, Any], number: int) -> Problem:
        """The problem in a row; `number` counts from 0.

        Raises:
            MalformedRow: the row is not one of this task's.
        """

    def scorer(self, config: TaskConfig, context: ScoringContext) -> Scorer:
        """What scores its replies.

        Raises:
            MissingExtra: a library that it needs is not installed.
        """


class TaskDefaults:
    """What a task's module may also declare."""

    @staticmethod
    def chosen(config: TaskConfig, row: Mapping[str, Any]) -> bool:
        """Whether a row belongs to what the config evaluates, such as the problems of a release."""
        return True

    @staticmethod
    def demonstration(config: TaskConfig, row: Mapping[str, Any]) -> str | None:
        """A reply that solves a row, for worked examples; None if the task has none."""
        return None

    @staticmethod
    def issues(config: TaskConfig) -> list[ConfigIssue]:
        """Problems that can be found without reading rows: a missing library."""
        return []

    @staticmethod
    def notes(config: TaskConfig) -> list[str]:
        """What one has to know to compare its scores with others', a line each."""
        return []


def _check(name: str, module: ModuleType) -> list[str]:
    return names_itself(name, module.Config, "task")


TASK = Contract(TaskModule, TaskDefaults, _check)
