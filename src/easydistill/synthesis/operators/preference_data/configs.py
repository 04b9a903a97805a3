"""The configs of the four methods of making pairs; `methods.py` implements them.

student              the teacher's answer over the student's own samples, by a judge's scores
rank                 any two answers of teacher and student, by a judge that compares them in both orders
verifiable           a right answer over a wrong one, where the right final answer is known
contrastive_prompt   the teacher's answer under a good system prompt over that under a bad one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from easydistill.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Unfit
from easydistill.contracts.operator import OperatorConfig, Role
from easydistill.synthesis import difficulty as _difficulty
from easydistill.verification.answers import Strategy

SCORING, BOXED, GOOD, BAD = "answer_scoring", "boxed_answer", "good_answer", "bad_answer"
PROMPTS = (SCORING, _difficulty.PROMPT, BOXED, GOOD, BAD)


class PairsConfig(OperatorConfig):
    """Settings of all methods."""

    identity_name = "operator.preference_data"

    asks_with: ClassVar[frozenset[str]]
    """Prompts that this method uses."""

    max_pairs: PositiveInt = 1
    """Maximum number of pairs per prompt."""
    length_balance: Literal["off", "choose", "drop"] = "choose"
    """Keep chosen answers from being systematically longer or shorter than rejected ones. `choose`: if a prompt offers
    both kinds of pairs, take the rarer one. `drop`: in addition, drop pairs of the more frequent kind, smallest margins
    first, until both are equally frequent."""
    max_length_ratio: Annotated[float, Field(ge=1)] | None = None
    """Drop pairs whose longer answer has more than this multiple of the shorter one's words."""

    @property
    def roles(self) -> frozenset[Role]:
        """Models that are asked."""
        raise NotImplementedError

    @property
    def most_samples(self) -> dict[Role, int]:
        """Samples per prompt, by model."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _uses_its_prompts(self) -> PairsConfig:
        unused = sorted(set(self.prompts) & set(PROMPTS) - self.asks_with)
        if unused:
            known = ", ".join(sorted(self.asks_with)) or "none"
            raise Unfit(f"prompts.{unused[0]} is not used by this method", f"it uses: {known}")
        return self


class SampledConfig(PairsConfig):
    """Settings of methods that sample teacher and student."""

    given_answers: bool = True
    """Use a row's own answer too. With `student` it takes the place of the teacher's, which is then not requested."""
    teacher_samples: NonNegativeInt = 1
    """Answers of the teacher per prompt."""
    student_samples: NonNegativeInt = 4
    """Answers of the student per prompt."""

    @property
    def most_samples(self) -> dict[Role, int]:
        return {"teacher": self.teacher_samples, "student": self.student_samples}

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset(role for role, count in self.most_samples.items() if count)


class JudgedConfig(SampledConfig):
    """Settings of methods with a judge."""

    min_margin: PositiveFloat = 1.0
    """Minimum difference between the judge's scores of two answers. Equal scores never make a pair."""

    @property
    def roles(self) -> frozenset[Role]:
        return super().roles | {"judge"}


class StudentConfig(JudgedConfig):
    """The teacher's answer over the student's own. A judge scores every answer by itself, 0 to 9."""

    asks_with: ClassVar[frozenset[str]] = frozenset({SCORING})

    method: Literal["student"] = "student"
    """How pairs are made."""
    student_samples: PositiveInt = 4
    """Answers of the student per prompt."""
    chosen: Literal["teacher", "best"] = "teacher"
    """Which answer is chosen: the teacher's, or the one with the best score among teacher's and student's."""

    @model_validator(mode="after")
    def _has_an_answer(self) -> StudentConfig:
        if not self.teacher_samples and not self.given_answers:
            raise Unfit("there is no better answer", "set teacher_samples above 0, or given_answers to true")
        return self


def sample_temperatures(temperatures: Sequence[float], count: int) -> list[float | None]:
    """The temperature of each of `count` samples, cycling through `temperatures`; None is the model's own."""
    return [temperatures[number % len(temperatures)] if temperatures else None for number in range(count)]


class RankConfig(JudgedConfig):
    """Any two of all answers. A judge scores both side by side, 1 to 10, in each order. They are a pair only if the
    same answer is preferred in both orders; the margin is the mean of both differences."""

    asks_with: ClassVar[frozenset[str]] = frozenset({_difficulty.PROMPT})

    method: Literal["rank"]
    """How pairs are made."""
    teacher_samples: NonNegativeInt = 2
    """Answers of the teacher per prompt."""
    student_samples: NonNegativeInt = 2
    """Answers of the student per prompt. n answers in all cost n·(n − 1) requests to the judge."""
    temperatures: tuple[NonNegativeFloat, ...] = ()
    """Temperatures through which each model's samples cycle; by default each model's own."""
    max_pairs: PositiveInt = 3
    """Maximum number of pairs per prompt."""

    @field_validator("temperatures")
    @classmethod
    def _can_be_divided_by(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        small = next((temperature for temperature in value if 0 < temperature < 1e-3), None)
        if small is not None:
            raise Unfit(f"{small} is too small to divide by", "use 0 for greedy answers, or at least 0.001")
        return value

    @model_validator(mode="after")
    def _has_two(self) -> RankConfig:
        if self.teacher_samples + self.student_samples + self.given_answers < 2:
            raise Unfit("a pair needs two answers", "raise teacher_samples or student_samples")
        return self

    @model_validator(mode="after")
    def _draws_samples(self) -> RankConfig:
        for role, count in self.most_samples.items():
            greedy = sample_temperatures(self.temperatures, count).count(0)
            if greedy > 1:
                raise Unfit(
                    f"{greedy} of the {role}'s {count} samples have temperature 0 and would be the same",
                    f"give temperatures such that at most one of {role}_samples has 0",
                )
        return self


class VerifiableConfig(SampledConfig):
    """A right answer over a wrong one. The right final answer is known from a row's `reference`, `final_answer` or
    `solution`, or is stated in its answer."""

    asks_with: ClassVar[frozenset[str]] = frozenset({BOXED})

    method: Literal["verifiable"]
    """How pairs are made."""
    given_answers: bool = False
    """Use a row's own answer too."""
    teacher_samples: NonNegativeInt = 0
    """Answers of the teacher per prompt."""
    allow_truncated: bool = False
    """Accept a truncated answer as a rejected one if the right final answer occurs nowhere in it."""
    boxed: bool = False
    """Ask for the final answer in \\boxed{}. Pairs hold the row's own prompt nevertheless."""
    strategies: tuple[Strategy, ...] = ("boxed", "hashes", "phrase")
    """Where to look for final answers, in this order. `last_number` is a guess: with it, an answer only counts as wrong
    if none of its numbers is the right one."""

    @model_validator(mode="after")
    def _has_two(self) -> VerifiableConfig:
        if self.teacher_samples + self.student_samples + self.given_answers < 2:
            raise Unfit("a pair needs two answers", "raise student_samples or teacher_samples")
        return self


class ContrastiveConfig(PairsConfig):
    """The teacher's answer under a good system prompt over that under a bad one. There is no judge: this teaches
    style."""

    asks_with: ClassVar[frozenset[str]] = frozenset({GOOD, BAD})

    method: Literal["contrastive_prompt"]
    """How pairs are made."""
    teacher_samples: PositiveInt = 1
    """Answers of the teacher under each of the two system prompts."""

    @property
    def most_samples(self) -> dict[Role, int]:
        return {"teacher": self.teacher_samples}

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({"teacher"})


def _method(value: Any) -> str:
    named = value.get("method", "student") if isinstance(value, dict) else getattr(value, "method", "student")
    return str(named)


Config = Annotated[
    Annotated[StudentConfig, Tag("student")]
    | Annotated[RankConfig, Tag("rank")]
    | Annotated[VerifiableConfig, Tag("verifiable")]
    | Annotated[ContrastiveConfig, Tag("contrastive_prompt")],
    Discriminator(_method),
]
"""Discriminated by `method`, which defaults to `student`."""
