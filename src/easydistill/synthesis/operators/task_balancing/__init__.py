"""Draws rows in given proportions of tasks, by the label in `meta["task"]` (the mixture of DistilQwen2).

    target_c = ⌊N · r_c / Σ r⌋

The sum runs over the tasks that have rows, so the share of an empty task goes to the others. If a task has enough rows,
target_c are drawn, different prompts before further answers to the same prompt. If it has too few, all are taken and
repeated, each at most `max_copies` times; the number still missing is reported, so that more can be generated. Draws
depend on seed and row id alone, not on the order of the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Annotated

from pydantic import Field, model_validator

from easydistill.config.base import NonEmptyStr, NonNegativeFloat, PositiveInt, Section, Seed, Unfit
from easydistill.contracts.operator import Result, Steps, UnfitRows
from easydistill.data.records import Rejection, Sample, count_reasons, draw_key
from easydistill.synthesis.tools import Tools

STAGE = "task_balancing"
SUMMARY = "As many rows of every task as the target shares ask for."
PROMPTS: tuple[str, ...] = ()
REASONS = ("no_task", "task_not_wanted", "over_target")
LABELLED = None
MAKES_PROMPTS = False
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
    if rows and not any(isinstance(row.meta.get(TASK), str) for row in rows):
        raise UnfitRows(f"none of the {len(rows)} rows has a {TASK}; task_labelling writes it")
    by_task = _by_task(config, rows)
    targets = targets_of(config, {task: len(found) for task, found in by_task.items()})
    times: Counter[str] = Counter()
    for task, found in by_task.items():
        times.update(_drawn(found, targets[task], config))
    accepted = _repeated(rows, times)
    dropped = [_why_dropped(row, by_task, targets) for row in rows if not times[row.id]]
    facts = {
        "tasks": {task: _fact(found, targets[task], times) for task, found in by_task.items()},
        "repeated": len(accepted) - len(times),
        "dropped": count_reasons(dropped),
    }
    return Result(accepted, dropped, len(accepted) + len(dropped), facts)


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


def _by_task(config: Config, rows: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The rows of each task that has a share."""
    by_task: dict[str, list[Sample]] = {task: [] for task, part in config.targets.items() if part}
    for row in rows:
        task = row.meta.get(TASK)
        if isinstance(task, str) and task in by_task:
            by_task[task].append(row)
    return by_task


def _why_dropped(row: Sample, by_task: Mapping[str, Sequence[Sample]], targets: Mapping[str, int]) -> Rejection:
    task = row.meta.get(TASK)
    if not isinstance(task, str):
        reason, detail = "no_task", f"{TASK} is {task!r}, not a label; task_labelling writes it"
    elif task not in by_task:
        reason, detail = "task_not_wanted", f"there is no target for {task}"
    else:
        reason, detail = "over_target", f"{targets[task]} of {len(by_task[task])} rows are taken for {task}"
    return Rejection(row.id, STAGE, reason, detail, 1, list(row.messages))


def _drawn(rows: Sequence[Sample], target: int, config: Config) -> list[str]:
    """Ids of the rows to take: at most `target`, each at most `max_copies` times."""
    by_hash = sorted(rows, key=lambda row: draw_key(config.seed, row.id))
    earlier: Counter[str] = Counter()
    turns: list[tuple[int, str]] = []
    for row in by_hash:
        turns.append((earlier[row.prompt_hash], row.id))
        earlier[row.prompt_hash] += 1
    # The sort is stable: within a turn, the order of hashes stays.
    order = [identity for _, identity in sorted(turns, key=lambda turn: turn[0])]
    return (order * config.max_copies)[:target]


def _repeated(rows: Iterable[Sample], times: Counter[str]) -> list[Sample]:
    rows = list(rows)
    taken = {row.id for row in rows}
    result: list[Sample] = []
    for row in rows:
        for turn in range(times[row.id]):
            if turn == 0:
                result.append(row)
                continue
            identity = f"{row.id}-repeat-{turn}"
            while identity in taken:
                identity += "-"
            taken.add(identity)
            result.append(replace(row, id=identity, meta={**row.meta, "repeats": row.id}))
    return result


def _fact(rows: Sequence[Sample], target: int, times: Counter[str]) -> dict[str, int]:
    taken = sum(times[row.id] for row in rows)
    distinct = sum(1 for row in rows if times[row.id])
    return {
        "available": len(rows),
        "target": target,
        "taken": taken,
        "repeated": taken - distinct,
        "missing": target - taken,
    }
