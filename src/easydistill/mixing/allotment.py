"""How many rows of each input a mix takes. Pure arithmetic: nothing is read here.

With n_i rows of input i that may be taken e_i times each (its capacity n_i·e_i), shares s_i and counts c_i:

- shares alone: s_i·T rows, where T is `total` or the largest for which no input runs out;
- counts (or all of an input) F together, and shares: T = F / (1 − Σ s_i);
- with `total`, inputs of which all is wanted fill T − Σ c_i − Σ s_i·T, in proportion to their capacities.

Fractions are rounded by largest remainder, ties to the earlier input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from easydistill.errors import DataError


@dataclass(frozen=True)
class Wanted:
    """How much of an input is taken: a count, a share of the mix, or all."""

    count: int | None = None
    share: Fraction | None = None
    epochs: int = 1
    """How often each row may be taken."""

    @property
    def is_all(self) -> bool:
        """Whether all of it is wanted, or as much as there is room for."""
        return self.count is None and self.share is None


class Shortage(DataError):
    """More rows are wanted of inputs than they have."""


def known_total(wanted: Mapping[str, Wanted], total: int | None) -> int | None:
    """The rows of the mix, if that does not depend on how many rows the inputs have."""
    if total is not None:
        return total
    if any(item.is_all for item in wanted.values()):
        return None
    shares = sum(item.share for item in wanted.values() if item.share is not None)
    counts = sum(item.count for item in wanted.values() if item.count is not None)
    return None if shares == 1 else _round(Fraction(counts) / (1 - shares))


def allot(wanted: Mapping[str, Wanted], available: Mapping[str, int], total: int | None = None) -> dict[str, int]:
    """How many rows each input gives.

    Args:
        available: rows that each input has.

    Raises:
        Shortage: an input has too few.
    """
    capacity = {name: available[name] * item.epochs for name, item in wanted.items()}
    shares = {name: item.share for name, item in wanted.items() if item.share is not None}
    fixed = {name: item.count for name, item in wanted.items() if item.count is not None}
    rest = [name for name, item in wanted.items() if item.is_all]
    if total is None:
        fixed |= {name: capacity[name] for name in rest}
        total = _total(shares, sum(fixed.values()), capacity)
        rest = []
    parts = {name: share * total for name, share in shares.items()}
    room = total - sum(fixed.values()) - (sum(parts.values()) if rest else 0)
    if rest:
        whole = sum(capacity[name] for name in rest) or 1
        parts |= {name: room * Fraction(capacity[name], whole) for name in rest}
    found = fixed | (_rounded(parts, total - sum(fixed.values())) if parts else {})
    _refuse_shortage(found, wanted, available)
    return {name: found[name] for name in wanted}


def _total(shares: Mapping[str, Fraction], fixed: int, capacity: Mapping[str, int]) -> int:
    """The rows of the mix, where the config leaves that open."""
    left = 1 - sum(shares.values())
    if left:
        return _round(Fraction(fixed) / left)
    largest = min(Fraction(capacity[name]) / share for name, share in shares.items())
    total = int(largest)
    # Rounding may give an input one row more than its share.
    while total and any(count > capacity[name] for name, count in _rounded(_parts(shares, total), total).items()):
        total -= 1
    return total


def _parts(shares: Mapping[str, Fraction], total: int) -> dict[str, Fraction]:
    return {name: share * total for name, share in shares.items()}


def _round(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


def _rounded(parts: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole numbers with this sum, by largest remainder."""
    found = {name: int(part) for name, part in parts.items()}
    order = sorted(parts, key=lambda name: -(parts[name] - found[name]))
    for name in order[: max(0, total - sum(found.values()))]:
        found[name] += 1
    return found


def _refuse_shortage(found: Mapping[str, int], wanted: Mapping[str, Wanted], available: Mapping[str, int]) -> None:
    short = [name for name, count in found.items() if count > available[name] * wanted[name].epochs]
    if not short:
        return
    told = ", ".join(
        f"{name}: {found[name]:,} wanted, {available[name] * wanted[name].epochs:,} there" for name in short
    )
    name = short[0]
    if not available[name]:
        raise Shortage(f"too few rows ({told})\n    → no row of {name} is left: see why in rejected.jsonl")
    epochs = -(-found[name] // available[name])
    raise Shortage(
        f"too few rows ({told})\n    → lower its count or share, or total, or take rows of {name} more than once: "
        f'"epochs": {epochs}'
    )
