"""Tokens and money spent on a teacher's answers, and whether the budget has room for another request.

Token counts are the server's. Without them the budget counts an upper bound, and the cost is unknown: "n/a", never 0.
Failed attempts are not counted, since servers do not report what they charge for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from easydistill.config.inference import PricesConfig
from easydistill.contracts.teacher import Completion
from easydistill.engine.budget import Budget
from easydistill.teachers.sizes import Size, text_tokens

_MILLION = 1_000_000


class Ledger:
    """Counts the answers of this and earlier attempts, and reserves the most that requests in flight can take.

    Args:
        prices: per million tokens; None if the config has none.
        max_cost: the budget in the currency of `prices`, which it requires.
        max_tokens: the budget in tokens of prompts and answers.
        shared: a budget that others spend too, besides its own; a limit in money requires prices.
        built_in: the date of the prices, if they are built in; None if the config gives them.
        currency: that of the prices, where it is known.
    """

    def __init__(
        self,
        prices: PricesConfig | None = None,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        shared: Budget | None = None,
        *,
        built_in: str | None = None,
        currency: str | None = None,
    ) -> None:
        assert prices is not None or max_cost is None
        self._shared, self._built_in, self._currency = shared, built_in, currency
        self._prices, self._max_cost, self._max_tokens = prices, max_cost, max_tokens
        self._seen: set[str] = set()
        self._answers = self._uncounted = 0
        self._free, self._saved = 0, (0, 0)
        """Answers that the answers cache had, and their (prompt, completion) tokens."""
        self._prompt = self._completion = 0
        self._cached: int | None = None
        self._reasoning: int | None = None
        self._guessed = self._reserved = (0, 0)
        """(prompt, completion) tokens: estimates for answers without counts; upper bounds for requests in flight."""
        if shared is not None:
            shared.join(self)

    # --- counting ---------------------------------------------------------------------------------------------

    def opened(self, journal: Path, author: str) -> None:
        """The answers of `author` in a journal are entered here, and those to come will be."""
        if self._shared is not None:
            self._shared.open(journal, author, self)

    def is_new(self, key: str) -> bool:
        """Whether `key` has not been seen before; True once for each key."""
        new = key not in self._seen
        self._seen.add(key)
        return new

    def add(self, answer: Completion, size: Size | None = None) -> None:
        """Count an answer.

        Args:
            size: the estimate made for the request; None for an answer of an earlier attempt.
        """
        self._seen.add(answer.key)
        self._answers += 1
        if is_counted(answer):
            self._prompt += answer.prompt_tokens
            self._completion += answer.completion_tokens
            if answer.cached_prompt_tokens is not None:
                self._cached = (self._cached or 0) + answer.cached_prompt_tokens
            if answer.reasoning_tokens is not None:
                self._reasoning = (self._reasoning or 0) + answer.reasoning_tokens
            return
        self._uncounted += 1
        written = text_tokens(answer.text) + text_tokens(answer.reasoning)
        self._guessed = _plus(self._guessed, (size.worst_prompt, size.worst_completion) if size else (0, written))

    def add_free(self, answer: Completion) -> None:
        """Count an answer that was not asked for, because the answers cache had it: it costs nothing."""
        self._seen.add(answer.key)
        self._free += 1
        self._saved = _plus(self._saved, (answer.prompt_tokens, answer.completion_tokens))

    @property
    def tokens(self) -> int:
        """Of prompts and answers, estimates included."""
        return self._prompt + self._completion + sum(self._guessed)

    @property
    def cost(self) -> float | None:
        """Of all answers; None if a price or a count is missing."""
        return None if self._prices is None or self._uncounted else self.cost_at_least

    @property
    def cost_at_least(self) -> float:
        """Of all answers, those without counts as estimated; 0 without prices."""
        if self._prices is None:
            return 0.0
        prices, cached = self._prices, min(self._cached or 0, self._prompt)
        reread = prices.input if prices.cached_input is None else prices.cached_input
        whole = (self._prompt - cached) * prices.input + cached * reread + self._completion * prices.output
        return whole / _MILLION + self._price(self._guessed)

    def _price(self, tokens: tuple[int, int]) -> float:
        if self._prices is None:
            return 0.0
        return (tokens[0] * self._prices.input + tokens[1] * self._prices.output) / _MILLION

    # --- the budget -------------------------------------------------------------------------------------------

    def has_room(self, size: Size) -> bool:
        """Whether another request fits, whatever the length of its answer and of those in flight."""
        coming = _plus(self._reserved, (size.worst_prompt, size.worst_completion))
        if self._max_tokens is not None and self.tokens + sum(coming) > self._max_tokens:
            return False
        if self._max_cost is not None and self.cost_at_least + self._price(coming) > self._max_cost:
            return False
        worst = (size.worst_prompt, size.worst_completion)
        return self._shared is None or self._shared.has_room(sum(worst), self._price(worst))

    @property
    def reserved_tokens(self) -> int:
        """The most that requests in flight can take."""
        return sum(self._reserved)

    @property
    def reserved_cost(self) -> float:
        """The most that requests in flight can cost; 0 without prices."""
        return self._price(self._reserved)

    def reserve(self, size: Size) -> None:
        self._reserved = _plus(self._reserved, (size.worst_prompt, size.worst_completion))

    def release(self, size: Size) -> None:
        self._reserved = _plus(self._reserved, (-size.worst_prompt, -size.worst_completion))

    def exhausted(self, size: Size) -> str:
        """The error message for a budget without room."""
        worst = (size.worst_prompt, size.worst_completion)
        if self._shared is not None and not self._shared.has_room(sum(worst), self._price(worst)):
            return self._shared.exhausted(size.worst)
        limits = [f"max_tokens_total {self._max_tokens:,}"] if self._max_tokens is not None else []
        limits += [f"max_cost {self._max_cost:g}"] if self._max_cost is not None else []
        return (
            f"the budget ({', '.join(limits)}) has no room for another request, which may take {size.worst:,} tokens; "
            f"spent so far: {self.words()}\n"
            f"    → raise {' or '.join(f'inference.{limit.split()[0]}' for limit in limits)}; "
            "the same command then goes on, and asks for nothing it has already"
        )

    # --- reporting --------------------------------------------------------------------------------------------

    @property
    def is_watched(self) -> bool:
        """Whether there are prices or a budget."""
        shared = self._shared is not None and self._shared.is_limited
        return self._prices is not None or self._max_tokens is not None or shared

    def words(self) -> str:
        """The spending, in one line."""
        cached = f" ({self._cached:,} of them cached)" if self._cached is not None else ""
        reasoning = f" ({self._reasoning:,} of them reasoning)" if self._reasoning is not None else ""
        cost = "n/a" if self.cost is None else f"{self.cost:.6g}"
        if self.cost is not None and self._built_in is not None:
            cost += f" {self._currency} (built-in price of {self._built_in})"
        uncounted = f", {self._uncounted:,} answers without counts (taken for {sum(self._guessed):,})"
        return (
            f"{self._prompt:,} tokens in{cached}, {self._completion:,} out{reasoning}"
            f"{uncounted if self._uncounted else ''}, cost {cost}{self._saved_words()}"
        )

    def priced(self) -> dict[str, str]:
        """Where the prices are from, for the stage's manifest, if they are built in."""
        if self._built_in is None:
            return {}
        return {"prices_as_of": self._built_in, "currency": self._currency or ""}

    def _saved_words(self) -> str:
        if not self._free:
            return ""
        saved = "" if self._prices is None else f", {self._price(self._saved):.6g} saved"
        return f" ({self._free:,} answers from the answers cache{saved})"

    def as_metrics(self) -> dict[str, Any]:
        """For the stage's manifest; None means unknown."""
        return {
            "answers": self._answers,
            "answers_without_counts": self._uncounted,
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "cached_prompt_tokens": self._cached,
            "reasoning_tokens": self._reasoning,
            "cost": None if self.cost is None else round(self.cost, 9),
            **(self._saved_metrics() if self._free else {}),
        }

    def _saved_metrics(self) -> dict[str, Any]:
        return {
            "answers_from_cache": self._free,
            "saved_tokens": sum(self._saved),
            "saved_cost": None if self._prices is None else round(self._price(self._saved), 9),
        }


@runtime_checkable
class Metered(Protocol):
    """A teacher that counts what its answers cost."""

    ledger: Ledger


def is_counted(answer: Completion) -> bool:
    """Whether the server reported the answer's tokens."""
    return answer.prompt_tokens > 0 or answer.completion_tokens > 0


def _plus(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
