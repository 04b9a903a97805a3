"""Selects chains of thought by Reasoning Verbosity and Cognitive Difficulty (OmniThought, arXiv 2505.10937).

Correct chains within the ranges stay. An optional mixture then divides them into bins of difficulty, each with a target
verbosity (hard problems deserve long chains) and a number of rows, and takes the rows nearest to the target; ties are
broken by a hash of seed and row id. Scores are `meta["rv"]` and `meta["cd"]`, 0–9, and `meta["correct"]`, 0 or 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from easydistill.config.base import NonNegativeInt, PositiveInt, Section, Seed, Share, Unfit
from easydistill.contracts.operator import Result, Steps
from easydistill.data.records import Rejection, Sample, count_reasons, draw_key
from easydistill.data.spool import like
from easydistill.synthesis.selection import ANY, LARGEST, NotScored, Score, ScoreRange, score, verdict
from easydistill.synthesis.tools import Tools

STAGE = "cot_selection"
SUMMARY = "Chains of thought chosen by verbosity, difficulty and correctness."
PROMPTS: tuple[str, ...] = ()
REASONS = ("not_scored", "incorrect", "verbosity", "difficulty", "not_selected")
LABELLED = True
MAKES_PROMPTS = False
KEEPS_IMAGES = True
Problem = tuple[str, str]
"""Why a row is rejected, as (reason, detail)."""
_OR_KEEP = ', or set "unjudged": "keep" if all chains were verified'
RV, CD, CORRECT = "rv", "cd", "correct"
"""Keys of a row's `meta` with its scores."""


class Mix(Section):
    """The number of rows of each difficulty, and how verbose they should be."""

    bins: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST + 1)], ...], Field(min_length=2)] = (0, 3, 6, 10)
    """Bounds of the difficulty bins: 0, 3, 6, 10 are 0 ≤ CD < 3, 3 ≤ CD < 6, 6 ≤ CD < 10."""
    rv: tuple[Score, ...] = (2, 5, 8)
    """Target verbosity of each bin."""
    counts: tuple[NonNegativeInt, ...] | None = None
    """Rows of each bin; alternatively give `shares` and `total`."""
    shares: tuple[Share, ...] | None = None
    """Each bin's share of `total`, rounded down."""
    total: PositiveInt | None = None
    """Rows of all bins together, divided by `shares`."""

    @model_validator(mode="after")
    def _fits(self) -> Mix:
        if any(low >= high for low, high in pairwise(self.bins)):
            raise Unfit("the bounds of the bins are not ascending", "write them as in [0, 3, 6, 10]")
        bins = len(self.bins) - 1
        for name, values in (("rv", self.rv), ("counts", self.counts), ("shares", self.shares)):
            if values is not None and len(values) != bins:
                raise Unfit(f"there are {bins} bins but {len(values)} {name}", f"give {name} one value per bin")
        if (self.counts is None) == (self.shares is None) or (self.shares is None) != (self.total is None):
            raise Unfit("the number of rows is ambiguous", "give counts, or shares and total")
        if self.shares is not None and sum(map(_exactly, self.shares)) > 1:
            raise Unfit("the shares add up to more than 1", "lower them")
        return self

    def wanted(self) -> tuple[int, ...]:
        """Rows of each bin."""
        if self.counts is not None:
            return self.counts
        assert self.shares is not None and self.total is not None, "checked by the validator"
        return tuple(int(self.total * _exactly(share)) for share in self.shares)


class Config(Section):
    """Which chains of thought stay. EasyDistill 1 shipped `rv: [3, 5]`, `cd: [4, 4]`."""

    identity_name = "operator.cot_selection"

    rv: ScoreRange = ANY
    """Minimum and maximum Reasoning Verbosity."""
    cd: ScoreRange = ANY
    """Minimum and maximum Cognitive Difficulty; smaller students learn from easier problems."""
    mix: Mix | None = None
    """How many of the rows within the ranges to take of each difficulty; by default all."""
    seed: Seed = 0
    """Breaks ties between rows that fit a bin equally well."""
    unjudged: Literal["reject", "keep"] = "reject"
    """What becomes of chains of which nothing says whether they are correct (no `correct`). `keep` is for published
    sets of verified chains that leave it out, as OmniThought does. Chains that are marked wrong are always rejected."""


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Keep correct chains of thought that fit the config. Asks no model."""
    yield from ()
    return select(config, rows)


def select(config: Config, rows: Sequence[Sample]) -> Result:
    """Accepted and rejected rows, both in the rows' order. The facts include how many rows each bin lacks, and how
    often each score was given, before and after (rounded)."""
    # Few problems are different, and rows many.
    same: dict[Problem | None, Problem | None] = {}
    problems = [same.setdefault(problem, problem) for problem in (_problem(config, row) for row in rows)]
    facts: dict[str, Any] = {"correct_and_in_range": problems.count(None)}
    if config.mix is not None:
        facts["bins"], left = _mixed(config.mix, config.seed, rows, problems)
        for number, why in left:
            problems[number] = same.setdefault(why, why)
    result = Result(like(rows), like(rows), len(rows), facts)
    counts = {f"{name}, {when}": Counter[int]() for name in (RV, CD) for when in ("before", "after")}
    for row, problem in zip(rows, problems, strict=True):
        if problem is None or problem[0] != "not_scored":
            for name in (RV, CD):
                value = round(score(row, name))
                counts[f"{name}, before"][value] += 1
                counts[f"{name}, after"][value] += problem is None
        if problem is None:
            result.accepted.append(row)
        else:
            result.rejected.append(Rejection(row.id, STAGE, *problem, 1, row.answer))
    facts["scores"] = {name: {str(value): found[value] for value in sorted(found)} for name, found in counts.items()}
    facts["dropped"] = count_reasons(result.rejected)
    return result


def _problem(config: Config, row: Sample) -> Problem | None:
    """Why a row is rejected, as (reason, detail); None if it is not."""
    unjudged = config.unjudged == "keep" and row.meta.get(CORRECT) is None
    try:
        correct, rv, cd = unjudged or verdict(row, CORRECT), score(row, RV), score(row, CD)
    except NotScored as problem:
        absent = problem.key == CORRECT and row.meta.get(CORRECT) is None
        return "not_scored", f"{problem}; cot_scoring writes it{_OR_KEEP if absent else ''}"
    if not correct:
        return "incorrect", "the chain of thought was judged wrong"
    for reason, name, value, (low, high) in (("verbosity", RV, rv, config.rv), ("difficulty", CD, cd, config.cd)):
        if not low <= value <= high:
            return reason, f"{name} {value:g} is outside {low:g} to {high:g}"
    return None


def _mixed(
    mix: Mix, seed: int, rows: Sequence[Sample], problems: Sequence[Problem | None]
) -> tuple[list[dict[str, Any]], Iterator[tuple[int, Problem]]]:
    """Facts about each bin, and why rows without a problem so far are not in the mixture, by their numbers."""
    members: list[list[tuple[float, bytes, int, float]]] = [[] for _ in mix.rv]
    left: list[Iterator[tuple[int, Problem]]] = []
    outside: list[tuple[int, Problem]] = []
    for number, (row, problem) in enumerate(zip(rows, problems, strict=True)):
        if problem is not None:
            continue
        place = bisect_right(mix.bins, score(row, CD)) - 1
        if 0 <= place < len(members):
            rv = score(row, RV)
            members[place].append((abs(rv - mix.rv[place]), draw_key(seed, row.id), number, rv))
        else:
            outside.append((number, ("difficulty", f"cd {score(row, CD):g} is in no bin of {list(mix.bins)}")))
    facts: list[dict[str, Any]] = []
    for bounds, target, wanted, found in zip(pairwise(mix.bins), mix.rv, mix.wanted(), members, strict=True):
        found.sort()
        left.append(_surplus(found, wanted, bounds, target))
        taken = found[:wanted]
        off = sum(distance for distance, *_ in taken)
        facts.append(
            {
                "cd": list(bounds),
                "rv_target": target,
                "wanted": wanted,
                "available": len(found),
                "taken": len(taken),
                "missing": wanted - len(taken),
                "mean_rv_distance": round(off / len(taken), 4) if taken else None,
            }
        )
    return facts, chain(outside, *left)


def _surplus(
    order: Sequence[tuple[float, bytes, int, float]], wanted: int, bounds: tuple[int, int], target: float
) -> Iterator[tuple[int, Problem]]:
    low, high = bounds
    for _, _, number, rv in order[wanted:]:
        detail = f"{wanted} of {len(order)} rows with {low} ≤ cd < {high} are nearer to rv {target:g}, or as near"
        yield number, ("not_selected", f"rv {rv:g}: {detail}")


def _exactly(share: float) -> Fraction:
    """A share as the decimal that was written: 0.1 + 0.2 + 0.7 is exactly 1."""
    return Fraction(str(share))
