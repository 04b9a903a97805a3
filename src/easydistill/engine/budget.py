"""Money and tokens that several teachers may spend together: the budget of a pipeline.

What was spent is what journals of answers say. Each account is the answers of one author in one journal: at first as it
was found on disk, then, once a teacher has opened the journal, as that teacher's ledger counts it. So nothing is
counted twice, and nothing is forgotten after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

AccountKey = tuple[str, str]
"""(place of a journal below the run directory, author of the answers)."""


class Account(Protocol):
    """What a ledger says of its spending."""

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""

    @property
    def cost_at_least(self) -> float:
        """Of all answers, as far as their tokens are known; 0 without prices."""

    @property
    def reserved_tokens(self) -> int:
        """The most that requests in flight can take."""

    @property
    def reserved_cost(self) -> float:
        """The most that requests in flight can cost."""


@dataclass
class Found:
    """An account as it was found on disk, or as another process left it."""

    tokens: int = 0
    cost_at_least: float = 0.0
    reserved_tokens: int = 0
    reserved_cost: float = 0.0


@dataclass
class Budget:
    """Limits, and what was spent of them."""

    directory: Path
    """The pipeline's run directory."""
    max_cost: float | None = None
    max_tokens: int | None = None
    accounts: dict[AccountKey, Account] = field(default_factory=dict)

    def place(self, journal: Path) -> str:
        """A journal's place, whatever the numbers of its job and stage are: both may move."""
        try:
            parts = journal.absolute().relative_to(self.directory.absolute()).parts
        except ValueError:
            return str(journal)
        # Each directory of a stage is one below `stages`: `2-label`.
        below = ("", *parts)
        return "/".join(
            part.partition("-")[2] if above == "stages" else part for above, part in zip(below, parts, strict=False)
        )

    def open(self, journal: Path, author: str, account: Account) -> None:
        """A ledger has counted the answers of an author in a journal, and goes on counting them."""
        place = self.place(journal)
        # Answers without a signature are counted for whoever opens their journal.
        self.accounts.pop((place, ""), None)
        before = self.accounts.get((place, author))
        self.accounts[place, author] = account
        open_elsewhere = any(self.accounts[key] is before for key in self._named())
        if before is not None and before is not account and not open_elsewhere:
            # The same model, asked in another way: its new ledger has the answers of the old one.
            self.accounts.pop(("", f"{id(before)}"), None)

    def _named(self) -> list[AccountKey]:
        return [key for key in self.accounts if key[0]]

    def _distinct(self) -> list[Account]:
        """Each account once: a judge's ledger counts several journals."""
        return list({id(account): account for account in self.accounts.values()}.values())

    def join(self, account: Account) -> None:
        """A ledger may begin to spend before it has opened a journal."""
        self.accounts["", f"{id(account)}"] = account

    @property
    def tokens(self) -> int:
        return sum(account.tokens for account in self._distinct())

    @property
    def cost(self) -> float:
        return sum(account.cost_at_least for account in self._distinct())

    @property
    def is_limited(self) -> bool:
        return self.max_cost is not None or self.max_tokens is not None

    def has_room(self, tokens: int, cost: float) -> bool:
        """Whether a request that may take so much fits, whatever becomes of those in flight."""
        accounts = self._distinct()
        if self.max_tokens is not None:
            taken = sum(account.tokens + account.reserved_tokens for account in accounts)
            if taken + tokens > self.max_tokens:
                return False
        if self.max_cost is None:
            return True
        return sum(account.cost_at_least + account.reserved_cost for account in accounts) + cost <= self.max_cost

    def exhausted(self, tokens: int) -> str:
        """The error message for a budget without room for a request that may take so many tokens."""
        limits = {"max_tokens_total": self.max_tokens, "max_cost": self.max_cost}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        shown = ", ".join(f"{name} {limit:,}" for name, limit in given.items())
        return (
            f"the pipeline's budget ({shown}) has no room for another request, which may take {tokens:,} tokens; "
            f"spent so far: {self.words()}\n"
            f"    → raise the pipeline's {' or '.join(given)}; the same command then goes on, and asks for nothing it "
            "has already"
        )

    def left(self) -> list[str]:
        """What is left of each limit, a line each."""
        lines = []
        if self.max_cost is not None:
            left = max(0.0, self.max_cost - self.cost)
            lines.append(f"max_cost {self.max_cost:g} for all jobs: {self.cost:.6g} spent, {left:.6g} left")
        if self.max_tokens is not None:
            left_tokens = max(0, self.max_tokens - self.tokens)
            spent = f"{self.tokens:,} spent, {left_tokens:,} left"
            lines.append(f"max_tokens_total {self.max_tokens:,} for all jobs: {spent}")
        return lines

    def words(self) -> str:
        """What was spent, by job."""
        by_job: dict[str, Found] = {}
        seen: set[int] = set()
        for (place, _), account in self.accounts.items():
            if id(account) not in seen and place:
                seen.add(id(account))
                job = place.split("/")[1] if place.startswith("stages/") else place
                of_job = by_job.setdefault(job, Found())
                of_job.tokens += account.tokens
                of_job.cost_at_least += account.cost_at_least
        parts = [f"{name} {found.tokens:,}" for name, found in by_job.items() if found.tokens]
        tokens = f"{self.tokens:,} tokens" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
        if self.max_cost is None:
            return tokens
        costs = [f"{name} {found.cost_at_least:.6g}" for name, found in by_job.items() if found.cost_at_least]
        return f"{tokens}, cost {self.cost:.6g}" + (f" ({', '.join(costs)})" if len(costs) > 1 else "")

    def settle(self, job: str, found: Mapping[AccountKey, Account]) -> None:
        """A job has ended: its accounts are what is on disk now, by whichever processes it was written."""
        own = f"stages/{job}/"
        others = {key: self.accounts[key] for key in self._named() if not key[0].startswith(own)}
        self.accounts = {**others, **found}

    # --- other processes ------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Limits and accounts as plain data, for the process that a stage runs in."""
        accounts = [
            [place, author, asdict(Found(account.tokens, account.cost_at_least))]
            for (place, author), account in self.accounts.items()
        ]
        return {
            "directory": str(self.directory),
            "max_cost": self.max_cost,
            "max_tokens": self.max_tokens,
            "accounts": accounts,
        }

    @classmethod
    def of_snapshot(cls, value: Mapping[str, Any]) -> Budget:
        """The inverse of `snapshot`."""
        accounts: dict[AccountKey, Account] = {
            (place, author): Found(**found) for place, author, found in value["accounts"]
        }
        return cls(Path(value["directory"]), value["max_cost"], value["max_tokens"], accounts)
