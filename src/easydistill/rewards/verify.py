"""Whether an answer's final answer equals the known one: right or wrong, with nothing in between.

The final answer is found after the thoughts (`<think>…</think>`, which the prompt may have opened) as described in
`verification/answers.py`, and compared as described in `verification/equality.py`, in processes that are killed when
they hang. Whatever cannot be shown to be equal is wrong, including comparisons that take too long: the policy wrote the
answer and must not gain by making it unreadable. An answer whose whole text is the known answer is right without any
search, because the last number of `[1, 2, 3]`, for example, would not be its answer.

The reward abstains if the row's known answer is missing or cannot be compared (a sentence, a formula with unbalanced
braces).
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
from easydistill.verification.equality import Verifier
from easydistill.verification.plain import compare_plainly


class Config(RewardConfig):
    """Whether the final answer equals the row's known answer."""

    identity_name = "reward.verify"

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    field: NonEmptyStr = "answer"
    """The row's field with the known answer: the answer itself, or a solution that ends with `#### 42` or a box."""
    right: AnyFloat = 1.0
    """Reward of a right answer."""
    wrong: AnyFloat = 0.0
    """Reward of any other."""
    cut_off: Literal["wrong", "verify", "abstain"] = "wrong"
    """How an answer that was cut off is judged: `wrong` in any case; `verify` by its text; `abstain` not at all."""
    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = DEFAULT_STRATEGIES
    """How the final answer is found, in this order."""
    workers: PositiveInt = 2
    """Processes that compare answers by algebra."""
    seconds: PositiveFloat = 5.0
    """Maximum time for one comparison."""

    @model_validator(mode="after")
    def _rewards_the_right_one(self) -> Config:
        if self.right <= self.wrong:
            raise Unfit(f"right ({self.right:g}) is not more than wrong ({self.wrong:g})", "raise it, or lower wrong")
        return self


def make(config: Config, context: RewardContext) -> Reward:
    """Raises MissingExtra if math-verify is not installed."""
    return _Verify(config, context.tokenizer)


def check(config: Config, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's known answer."""
    return _mistyped(config.field, meta.get(config.field))


def knows(config: Config, meta: Mapping[str, Any]) -> bool:
    """Whether a row has a known answer to compare with."""
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
                pairs[row] = (reference, final_answer(answer, reference, self._config.strategies))
            elif self._config.cut_off == "wrong":
                values[row] = self._config.wrong
        for row, verdict in zip(pairs, self._verifier.verify_many(pairs.values()), strict=True):
            values[row] = self._config.right if verdict.equal else self._config.wrong
        return values

    def close(self) -> None:
        self._verifier.close()


def final_answer(answer: str, reference: str, strategies: Sequence[Strategy]) -> str:
    """The part of an answer to compare with the known one; empty if it has no final answer."""
    whole = compare_plainly(reference, answer)
    if whole is not None and whole.equal and whole.by == "text":
        return answer
    found = find_answer(answer, strategies)
    return found.text if found is not None else ""


def known_answer(meta: Mapping[str, Any], field: str) -> str | None:
    """A row's known final answer; None if there is none, or none that can be compared.

    Raises:
        DataError: the field is neither text nor a number.
    """
    value = meta.get(field)
    if value is None:
        return None
    if problem := _mistyped(field, value):
        raise DataError(f"{problem}\n    → set rewards.verify.field to the field with the known answer")
    text = str(value).strip()
    _, hashes, last = text.rpartition("\n")[2].rpartition("####")
    boxed = find_answer(text, ("boxed",))
    known = last.strip() if hashes else boxed.text if boxed is not None else only_statement(text) or text
    # Any answer that can be compared at all can be compared with a number.
    verdict = compare_plainly(known, "0")
    return None if verdict is not None and verdict.outcome == "undecided" else known


def _mistyped(field: str, value: Any) -> str | None:
    if value is None or isinstance(value, str | int | float):
        return None
    return f"the row's field {field!r} is a {type(value).__name__}, not text or a number"
