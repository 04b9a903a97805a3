"""The configs of the four ways to pairs of answers; `_pair_methods.py` has the ways themselves.

student              the teacher's answer above the student's own samples, by a judge's scores
rank                 any two answers of teacher and student, by a judge who sees them side by side in both orders
verifiable           a right answer above a wrong one, where the right final answer is known
contrastive_prompt   the teacher's answer under a good system prompt above that under a bad one
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
    """What all ways to pairs have."""

    identity_name = "operator.preference_data"

    asks_with: ClassVar[frozenset[str]]
    """Prompts that this way uses."""

    max_pairs: PositiveInt = 1
    """Most pairs of one prompt."""
    length_balance: Literal["off", "choose", "drop"] = "choose"
    """Whether chosen answers shall be longer than rejected ones about as often as shorter. `choose`: where a prompt
    offers both, take the kind that is too rare. `drop`: then also drop pairs of the frequent kind, smallest margins
    first, until both are equally frequent."""
    max_length_ratio: Annotated[float, Field(ge=1)] | None = None
    """Drop pairs whose longer answer has more than so many times the words of the shorter one."""

    @property
    def roles(self) -> frozenset[Role]:
        """Who is asked."""
        raise NotImplementedError

    @property
    def most_samples(self) -> dict[Role, int]:
        """How often a model is asked the same prompt."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _uses_its_prompts(self) -> PairsConfig:
        unused = sorted(set(self.prompts) & set(PROMPTS) - self.asks_with)
        if unused:
            known = ", ".join(sorted(self.asks_with)) or "none"
            raise Unfit(f"prompts.{unused[0]} is not used by this method", f"it has: {known}")
        return self


class SampledConfig(PairsConfig):
    """What ways have that sample teacher and student."""

    given_answers: bool = True
    """Let the answer that a row brings take part: in `student` instead of the teacher's, which is then not asked for.
    Off, it is left alone."""
    teacher_samples: NonNegativeInt = 1
    """Answers of the teacher to a prompt."""
    student_samples: NonNegativeInt = 4
    """Answers of the student to a prompt."""

    @property
    def most_samples(self) -> dict[Role, int]:
        return {"teacher": self.teacher_samples, "student": self.student_samples}

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset(role for role, count in self.most_samples.items() if count)


class JudgedConfig(SampledConfig):
    """What ways have in which a judge decides."""

    min_margin: PositiveFloat = 1.0
    """Least gap between the judge's scores of two answers. Equal ones are never a pair."""

    @property
    def roles(self) -> frozenset[Role]:
        return super().roles | {"judge"}


class StudentConfig(JudgedConfig):
    """The teacher's answer above the student's own. A judge scores every answer by itself, 0 to 9."""

    asks_with: ClassVar[frozenset[str]] = frozenset({SCORING})

    method: Literal["student"] = "student"
    """How pairs come about."""
    student_samples: PositiveInt = 4
    """Answers of the student to a prompt."""
    chosen: Literal["teacher", "best"] = "teacher"
    """Which answer is chosen: the teacher's, or of all, the student's too, whichever has the best score."""

    @model_validator(mode="after")
    def _has_an_answer(self) -> StudentConfig:
        if not self.teacher_samples and not self.given_answers:
            raise Unfit("nobody gives the better answer", "ask the teacher (teacher_samples), or set given_answers")
        return self


def heats_of(temperatures: Sequence[float], count: int) -> list[float | None]:
    """The temperature of each of `count` samples, which take them in turn; None is the model's own."""
    return [temperatures[number % len(temperatures)] if temperatures else None for number in range(count)]


class RankConfig(JudgedConfig):
    """Any two of all answers. A judge scores both of two, 1 to 10, in either order; only where both orders prefer the
    same answer there is a pair, and its margin is the mean of both gaps."""

    asks_with: ClassVar[frozenset[str]] = frozenset({_difficulty.PROMPT})

    method: Literal["rank"]
    """How pairs come about."""
    teacher_samples: NonNegativeInt = 2
    """Answers of the teacher to a prompt."""
    student_samples: NonNegativeInt = 2
    """Answers of the student to a prompt. n answers in all are n·(n − 1) questions to the judge."""
    temperatures: tuple[NonNegativeFloat, ...] = ()
    """Temperatures that each model's samples take in turn; by default each model's own."""
    max_pairs: PositiveInt = 3
    """Most pairs of one prompt."""

    @field_validator("temperatures")
    @classmethod
    def _can_be_divided_by(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        small = next((heat for heat in value if 0 < heat < 1e-3), None)
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
            greedy = heats_of(self.temperatures, count).count(0)
            if greedy > 1:
                raise Unfit(
                    f"{greedy} of the {role}'s {count} samples have temperature 0 and are the same",
                    f"give temperatures with one 0 among {role}_samples, or none",
                )
        return self


class VerifiableConfig(SampledConfig):
    """A right answer above a wrong one. The right final answer is known: a row's `reference`, `final_answer` or
    `solution`, or what its answer states."""

    asks_with: ClassVar[frozenset[str]] = frozenset({BOXED})

    method: Literal["verifiable"]
    """How pairs come about."""
    given_answers: bool = False
    """Let the answer that a row brings take part."""
    teacher_samples: NonNegativeInt = 0
    """Answers of the teacher to a prompt."""
    allow_truncated: bool = False
    """Let an answer that was cut off be a rejected one, if it does not hold the right final answer anywhere."""
    boxed: bool = False
    """Ask for the final answer in \\boxed{}. Pairs hold the row's own prompt all the same."""
    strategies: tuple[Strategy, ...] = ("boxed", "hashes", "phrase")
    """Where final answers are looked for, in this order. `last_number` is a guess: with it an answer is only taken for
    wrong where none of its numbers is the right one."""

    @model_validator(mode="after")
    def _has_two(self) -> VerifiableConfig:
        if self.teacher_samples + self.student_samples + self.given_answers < 2:
            raise Unfit("a pair needs two answers", "raise student_samples or teacher_samples")
        return self


class ContrastiveConfig(PairsConfig):
    """The teacher's answer under a good system prompt above that under a bad one. Nobody judges: this teaches style."""

    asks_with: ClassVar[frozenset[str]] = frozenset({GOOD, BAD})

    method: Literal["contrastive_prompt"]
    """How pairs come about."""
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
"""Told apart by `method`; without one, `student`."""
