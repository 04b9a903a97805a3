"""Draws rows in given proportions of tasks, by the label in `meta["task"]` (the mixture of DistilQwen2).

    target_c = ⌊N · r_c / Σ r⌋

The sum runs over the tasks that have rows, so the share of an empty task goes to the others. If a task has enough rows,
target_c are drawn, different prompts before further answers to the same prompt. If it has too few, all are taken and
repeated, each at most `max_copies` times; the number still missing is reported, so that more can be generated. Draws
depend on seed and row id alone, not on the order of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, PositiveInt, Section, Seed, Unfit
from easydistill.contracts.operator import Result, Steps, UnfitRows
from easydistill.data.records import Rejection, Sample, count_reasons, draw_key
from easydistill.data.spool import like
from easydistill.synthesis.tools import Tools

STAGE = "task_balancing"
SUMMARY = "As many rows of every task as the target shares ask for."
PROMPTS: tuple[str, ...] = ()
REASONS = ("no_task", "task_not_wanted", "over_target")
LABELLED = None
MAKES_PROMPTS = False
KEEPS_IMAGES = True
TASK = "task"
"""Key of a row's `meta` with its task label."""
_MAJOR = {"Math": 0.167, "Reasoning": 0.167, "Code Generation": 0.083, "Code Debug": 0.083, "Others": 0.041}
_MINOR = (
    "Art",
    "Biology",
    "Chemistry",
    "Common-Sense",
    "Complex Format",
    "Computer Science",
    "Counterfactual",
    "Ecology",
    "Economy",
    "Entertainment",
    "Ethics",
    "Grammar",
    "Health",
    "History",
    "Law",
    "Literature",
    "Medicine",
    "Multilingual",
    "Music",
    "Paraphrase",
    "Philosophy",
    "Physics",
    "Roleplay",
    "Sport",
    "Technology",
    "Toxicity",
    "Writing",
)
TARGETS: dict[str, float] = _MAJOR | dict.fromkeys(_MINOR, 0.017)
"""The 32 tasks and their shares, which add up to 1."""
TASKS = tuple(TARGETS)


class Config(Section):
    """How many rows of which task."""

    identity_name = "operator.task_balancing"

    targets: Annotated[dict[NonEmptyStr, NonNegativeFloat], Field(min_length=1)] = TARGETS
    """Each task's share of the whole. Rows of tasks that are not listed are dropped."""
    total: PositiveInt | None = None
    """N, total number of rows; by default the number of rows of the listed tasks."""
    max_copies: PositiveInt = 2
    """Maximum copies of a row if its task has too few rows; 1 repeats none."""
    seed: Seed = 0
    """Decides which rows are drawn."""

    @model_validator(mode="after")
    def _something_is_wanted(self) -> Config:
        if not any(self.targets.values()):
            raise Unfit("every target is 0", "give at least one task a share above 0")
        return self


def run(config: Config, rows: Sequence[Sample], tools: Tools | None = None) -> Steps[Result]:
    """Draw rows by task. Asks no model.

    Raises:
        UnfitRows: no row has a task label.
    """
    yield from ()
    return balance(config, rows)


def balance(config: Config, rows: Sequence[Sample]) -> Result:
    """Draw rows in the proportions of the targets. They keep their order, with copies next to the original.

    A copy gets an id of its own and has the original's id in `meta["repeats"]`; `entered` counts it as a candidate.
    """
    labels = [row.meta.get(TASK) for row in rows]
    if rows and not any(isinstance(label, str) for label in labels):
        raise UnfitRows(f"none of the {len(rows)} rows has a {TASK}; task_labelling writes it")
    by_task = _by_task(config, labels)
    targets = targets_of(config, {task: len(found) for task, found in by_task.items()})
    times: Counter[int] = Counter()
    for task, found in by_task.items():
        times.update(_drawn(rows, found, targets[task], config))
    accepted, dropped = like(rows), like(rows)
    ids = {row.id for row in rows} if config.max_copies > 1 else set()
    for number, row in enumerate(rows):
        if times[number]:
            accepted.extend(_copies(row, times[number], ids))
        else:
            dropped.append(_rejection(row, *_why_not(labels[number], by_task, targets)))
    facts = {
        "tasks": {task: _fact(found, targets[task], times) for task, found in by_task.items()},
        "repeated": len(accepted) - len(times),
        "dropped": count_reasons(dropped),
    }
    return Result(accepted, dropped, len(accepted) + len(dropped), facts)


def _by_task(config: Config, labels: Sequence[Any]) -> dict[str, list[int]]:
    """The numbers of the rows of each task that has a share."""
    by_task: dict[str, list[int]] = {task: [] for task, part in config.targets.items() if part}
    for number, label in enumerate(labels):
        if isinstance(label, str) and label in by_task:
            by_task[label].append(number)
    return by_task


def _why_not(label: Any, by_task: dict[str, list[int]], targets: dict[str, int]) -> tuple[str, str]:
    """Why a row is not taken, as (reason, detail)."""
    if not isinstance(label, str):
        return "no_task", f"{TASK} is {label!r}, not a label; task_labelling writes it"
    if label not in by_task:
        return "task_not_wanted", f"there is no target for {label}"
    return "over_target", f"{targets[label]} of {len(by_task[label])} rows are taken for {label}"


def targets_of(config: Config, available: dict[str, int]) -> dict[str, int]:
    """The target of each task: ⌊N · r_c / Σ r⌋ over the tasks that have rows, 0 for the others.

    Args:
        available: number of rows by task.
    """
    total = config.total if config.total is not None else sum(available.values())
    # Exact decimals, as written, not binary floats: ⌊1000 · 0.057⌋ is 57.
    parts = {task: Fraction(str(config.targets[task])) for task, count in available.items() if count}
    whole = sum(parts.values())
    return {task: int(total * parts[task] / whole) if task in parts else 0 for task in available}


def _drawn(rows: Sequence[Sample], numbers: Sequence[int], target: int, config: Config) -> list[int]:
    """Numbers of the rows to take: at most `target`, each at most `max_copies` times."""
    drawn = ((number, rows[number]) for number in numbers)
    keyed = [(draw_key(config.seed, row.id), bytes.fromhex(row.prompt_hash), number) for number, row in drawn]
    earlier: Counter[bytes] = Counter()
    turns: list[tuple[int, int]] = []
    for _, prompt, number in sorted(keyed):
        turns.append((earlier[prompt], number))
        earlier[prompt] += 1
    # The sort is stable: within a turn, the order of hashes stays.
    order = [number for _, number in sorted(turns, key=lambda turn: turn[0])]
    return (order * config.max_copies)[:target]


def _copies(row: Sample, times: int, taken: set[str]) -> Iterator[Sample]:
    """A row and its copies, with ids that are not `taken` yet."""
    yield row
    for turn in range(1, times):
        identity = f"{row.id}-repeat-{turn}"
        while identity in taken:
            identity += "-"
        taken.add(identity)
        yield replace(row, id=identity, meta={**row.meta, "repeats": row.id})


def _fact(numbers: Sequence[int], target: int, times: Counter[int]) -> dict[str, int]:
    taken = sum(times[number] for number in numbers)
    distinct = sum(1 for number in numbers if times[number])
    return {
        "available": len(numbers),
        "target": target,
        "taken": taken,
        "repeated": taken - distinct,
        "missing": target - taken,
    }


def _rejection(row: Sample, reason: str, detail: str) -> Rejection:
    return Rejection(row.id, STAGE, reason, detail, 1, list(row.messages))
