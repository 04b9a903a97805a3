"""Whether an answer's final answer is the known one: right or wrong, nothing between.

The final answer is looked for after the thoughts (`<think>…</think>`, which the prompt may have opened), as
`verification/answers.py` tells; it is compared as `verification/equality.py` tells, in processes that are killed when
they hang. Whatever cannot be shown to be equal is wrong, a comparison that takes too long too: the policy wrote it, and
must not gain by what nobody can read. An answer that is the known one as text, all of it, is right before anything is
looked for in it: the last number of `[1, 2, 3]` is not what it says.
A row abstains where its known answer is missing, or nothing that can be compared (a sentence, a formula with a brace
too many).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, PositiveFloat, PositiveInt, Unfit
from easydistill.contracts.reward import AnyFloat, Reward, RewardConfig, RewardContext, Rollout
from easydistill.errors import DataError
from easydistill.rewards._text import after_thoughts, with_opening
from easydistill.verification.answers import DEFAULT_STRATEGIES, Strategy, find_answer, only_statement
from easydistill.verification.equality import Verifier, compare_plainly


class Config(RewardConfig):
    """Whether the final answer equals the row's known one."""

    identity_name = "reward.verify"

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    field: NonEmptyStr = "answer"
    """The row's field with the known answer: the answer itself, or a solution that ends in `#### 42` or a box."""
    right: AnyFloat = 1.0
    """Reward of a right answer."""
    wrong: AnyFloat = 0.0
    """Reward of any other."""
    cut_off: Literal["wrong", "verify", "abstain"] = "wrong"
    """What an answer that was cut off is: wrong whatever it says; what its text shows; not judged."""
    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = DEFAULT_STRATEGIES
    """Where the final answer is looked for, in this order."""
    workers: PositiveInt = 2
    """Processes that compare by mathematics."""
    seconds: PositiveFloat = 5.0
    """Time that one comparison may take."""

    @model_validator(mode="after")
    def _rewards_the_right_one(self) -> Config:
        if self.right <= self.wrong:
            raise Unfit(f"right ({self.right:g}) is not more than wrong ({self.wrong:g})", "make it more")
        return self


def make(config: Config, context: RewardContext) -> Reward:
    """Raises MissingExtra without math-verify."""
    return _Verify(config, context.tokenizer)


def check(config: Config, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's known answer."""
    return _mistyped(config.field, meta.get(config.field))


def knows(config: Config, meta: Mapping[str, Any]) -> bool:
    """Whether a row holds an answer that others can be compared with."""
    return known_answer(meta, config.field) is not None


class _Verify:
    def __init__(self, config: Config, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._verifier = Verifier(config.workers, config.seconds)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        values: list[float | None] = [None] * len(rollouts)
        pairs: dict[int, tuple[str, str]] = {}
        for row, rollout in enumerate(rollouts):
            reference = known_answer(rollout.meta, self._config.field)
            if reference is None:
                continue
            if rollout.ended or self._config.cut_off == "verify":
                answer = after_thoughts(with_opening(rollout, self._tokenizer))
                pairs[row] = (reference, self._final(answer, reference))
            elif self._config.cut_off == "wrong":
                values[row] = self._config.wrong
        for row, verdict in zip(pairs, self._verifier.verify_many(pairs.values()), strict=True):
            values[row] = self._config.right if verdict.equal else self._config.wrong
        return values

    def _final(self, answer: str, reference: str) -> str:
        """What is to be compared of an answer; empty where it says nothing."""
        whole = compare_plainly(reference, answer)
        if whole is not None and whole.equal and whole.by == "text":
            return answer
        found = find_answer(answer, self._config.strategies)
        return found.text if found is not None else ""

    def close(self) -> None:
        self._verifier.close()


def known_answer(meta: Mapping[str, Any], field: str) -> str | None:
    """The final answer that a row holds; None where it holds none that anything could be compared with.

    Raises:
        DataError: the field is neither text nor a number.
    """
    value = meta.get(field)
    if value is None:
        return None
    if problem := _mistyped(field, value):
        raise DataError(f"{problem}\n    → set rewards.verify.field to the field with the known answer")
    text = str(value).strip()
    _, solved, last = text.rpartition("\n")[2].rpartition("####")
    boxed = find_answer(text, ("boxed",))
    known = last.strip() if solved else boxed.text if boxed is not None else only_statement(text) or text
    # A number can be compared with whatever can be compared at all.
    verdict = compare_plainly(known, "0")
    return None if verdict is not None and verdict.outcome == "undecided" else known


def _mistyped(field: str, value: Any) -> str | None:
    if value is None or isinstance(value, str | int | float):
        return None
    return f"the row's field {field!r} is a {type(value).__name__}, not text or a number"
