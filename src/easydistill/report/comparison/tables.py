"""Tables with a column for each run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from easydistill.data.numbers import as_float
from easydistill.engine.run_directory import RunDirectory
from easydistill.report.collect import MetricRow, StageFacts
from easydistill.report.comparison.runs import Compared, packages
from easydistill.report.document import Cell, Column, Row, Table, row
from easydistill.report.figures import MISSING, moment, or_missing, plain, time_of
from easydistill.report.metrics import figure_of, ordered_metrics, value_text
from easydistill.report.tables import total_seconds
from easydistill.report.values import as_dict, as_text, dig, json_object, shown
from easydistill.report.words import short_model

UNSET = "–"
"""A key that a run's config does not have, or that is null there."""
LONGEST = 160
"""Characters of a setting that are shown."""
BEST = "best"
SCORES = "scores.json"
Runs = Sequence[Compared]


def _columns(runs: Runs, style: str = "num") -> tuple[Column, ...]:
    return tuple(Column(run.name, style) for run in runs)


def overview(runs: Runs) -> Table:
    """What each run is."""
    lines: list[tuple[str, Callable[[Compared], str]]] = [
        ("Job", lambda run: run.facts.summary.job_type or MISSING),
        ("State", lambda run: run.state),
        ("Teacher", lambda run: _model(run, "teacher")),
        ("Student made from", lambda run: _model(run, "student")),
        ("Student's parameters", lambda run: or_missing(as_float(run.main.train.get("parameters")), ",.0f")),
        ("Rows read", lambda run: or_missing(run.facts.rows.entered)),
        ("Rows rejected", lambda run: or_missing(run.facts.rows.rejected)),
        ("Optimiser steps", lambda run: or_missing(as_float(run.main.train.get("steps")), ",.0f")),
        ("Time of work", lambda run: time_of(total_seconds(run.facts))),
        ("Finished", lambda run: moment(run.facts.summary.finished) or MISSING),
        ("Directory", lambda run: str(run.facts.directory)),
    ]
    rows = [row(name, *(words(run) for run in runs)) for name, words in lines]
    return Table("", _columns(runs, ""), tuple(each for each in rows if set(each.texts) != {MISSING}), "side")


def _model(run: Compared, role: str) -> str:
    """A model of the config, as short as a reader knows it."""
    given = dig(run.main.config, f"models.{role}")
    if given is None and role == "teacher":
        given = dig(run.main.config, "inference.model")
    if isinstance(given, dict):
        source = given.get("from")
        return f"{short_model(source)}, cut down" if isinstance(source, str) else "random weights"
    return short_model(given) if isinstance(given, str) and given else MISSING


def teacher_of(run: Compared) -> str:
    """The teacher's name, or `n/a`."""
    return _model(run, "teacher")


# --- measurements -------------------------------------------------------------------------------------------------


def metrics_table(runs: Runs) -> Table:
    """What every run measured on held-out rows, after training and before it; the best one is marked."""
    by_run = [{found.name: found for found in run.facts.metrics} for run in runs]
    names = ordered_metrics(tuple(found for metrics in by_run for found in metrics.values()))
    rows = [
        _metric_row(name, [metrics.get(name) for metrics in by_run]) for name in dict.fromkeys(m.name for m in names)
    ]
    return Table("Metric, after training", _columns(runs), tuple(rows), "hero side")


def _metric_row(name: str, found: Sequence[MetricRow | None]) -> Row:
    figure = figure_of(name)
    better = f"{figure.better} is better" if figure.better else ""
    values = [as_float(each.after) if each is not None else None for each in found]
    marked = best(values, figure.better)
    cells = [
        Cell(
            MISSING if each is None or each.after is None else value_text(name, each.after),
            "better" if at in marked else "",
            note=_beside(name, each, is_best=at in marked),
        )
        for at, each in enumerate(found)
    ]
    return row(figure.label, *cells, notes=(" · ".join(filter(None, (figure.unit, better))),))


def _beside(name: str, found: MetricRow | None, *, is_best: bool) -> str:
    before = "" if found is None or found.before is None else f"from {value_text(name, found.before)}"
    return ", ".join(filter(None, (BEST if is_best else "", before)))


def best(values: Sequence[float | None], better: str) -> set[int]:
    """Which values are the best; none where all are equal, or only one is known."""
    known = [value for value in values if value is not None]
    if not better or len(known) < 2 or min(known) == max(known):
        return set()
    top = min(known) if better == "lower" else max(known)
    return {at for at, value in enumerate(values) if value == top}


@dataclass(frozen=True)
class _TaskScore:
    """What a model scored in a task, and on what."""

    mean: float | None = None
    span: str = ""
    prompts: str = ""
    """The hash of what was asked."""
    sampling: str = ""


def task_table(runs: Runs) -> Table | None:
    """The scores of evaluation tasks, by task and model, from the `scores.json` of a stage; None if no run has one.

    Nothing is the best of runs that were asked different problems.
    """
    by_run = [dict(_task_scores(run)) for run in runs]
    keys = dict.fromkeys(key for scores in by_run for key in scores)
    rows = [_task_row(key, [scores.get(key, _TaskScore()) for scores in by_run]) for key in keys]
    return Table("Task and model", _columns(runs), tuple(rows), "side", note=" ({})") if rows else None


def _task_row(key: tuple[str, str], scores: Sequence[_TaskScore]) -> Row:
    known = [score for score in scores if score.mean is not None]
    prompts, samplings = ({getattr(score, name) for score in known} - {""} for name in ("prompts", "sampling"))
    notes = ["different problems or prompts"] * (len(prompts) > 1) + ["sampled differently"] * (len(samplings) > 1)
    marked = best([score.mean for score in scores], "higher") if len(prompts) < 2 else set()
    cells = [
        Cell(
            or_missing(score.mean, ".1%"),
            "better" if at in marked else "",
            note=", ".join(filter(None, (BEST if at in marked else "", score.span))),
        )
        for at, score in enumerate(scores)
    ]
    return row(", ".join(key), *cells, notes=tuple(notes))


def _task_scores(run: Compared) -> Iterator[tuple[tuple[str, str], _TaskScore]]:
    """(task, model's role or name) → its score."""
    for facts in (run.facts, *run.jobs):
        for directory in RunDirectory(facts.directory).stage_directories():
            found = json_object(directory / SCORES)
            tasks = found.get("tasks")
            for task in map(as_dict, tasks if isinstance(tasks, list) else ()):
                name = as_text(task.get("task") or task.get("name"))
                how = {"samples": task.get("samples"), **as_dict(task.get("sampling"))}
                sampling = json.dumps(how, sort_keys=True) if any(value is not None for value in how.values()) else ""
                roles = as_dict(found.get("models"))
                for model, figures in as_dict(task.get("models")).items():
                    role = as_text(as_dict(roles.get(model)).get("role"))
                    score = as_dict(as_dict(figures).get("score"))
                    mean, low, high = (as_float(score.get(key)) for key in ("mean", "low", "high"))
                    span = "" if low is None or high is None else f"{low:.1%} to {high:.1%}"
                    label = model if role in ("", "other") else role
                    yield (name, label), _TaskScore(mean, span, as_text(task.get("prompt_hash")), sampling)


# --- settings -----------------------------------------------------------------------------------------------------


def settings_table(runs: Runs) -> Table:
    """The keys of the configs that differ; the run's own directory and the sinks of its figures are not compared."""
    ignored = ("output_dir", "track", "storage")
    return _differing(runs, [run.settings for run in runs], "Key", ignored)


def environment_table(runs: Runs) -> Table:
    """Versions and machines that differ."""
    return _differing(runs, [packages(run) for run in runs], "On this machine")


def _differing(runs: Runs, values: Sequence[dict[str, object]], title: str, ignored: tuple[str, ...] = ()) -> Table:
    names = (name for name in dict.fromkeys(key for each in values for key in each))
    wanted = [name for name in names if name.partition(".")[0] not in ignored]
    texts = {name: [_setting(each.get(name)) for each in values] for name in wanted}
    differing = tuple(row(name, *_cut(found)) for name, found in texts.items() if len(set(found)) > 1)
    return Table(title, _columns(runs, ""), differing, "side", names="code")


def _cut(texts: Sequence[str]) -> list[str]:
    """Texts as they are shown: of long ones the part where they begin to differ."""
    if max(map(len, texts)) <= LONGEST:
        return list(texts)
    common = next(
        (at for at, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), min(map(len, texts))
    )
    start = max(0, common - LONGEST // 4) if common > LONGEST // 2 else 0
    return [("…" if start else "") + shown(text[start:], LONGEST) for text in texts]


def _setting(value: object) -> str:
    """A value as it is written in a config."""
    if value is None:
        return UNSET
    if isinstance(value, str | list | dict):
        return as_text(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return plain(value) if isinstance(value, bool) else str(value)


# --- time, tokens, money ------------------------------------------------------------------------------------------


def spending_table(runs: Runs) -> Table:
    """Time, tokens and cost of each stage of each run."""
    by_run = [dict(_stages(run)) for run in runs]
    stages = list(dict.fromkeys(name for stages in by_run for name in stages))
    rows = [row(name, *(_stage_cell(found.get(name)) for found in by_run)) for name in stages]
    rows.append(row("All stages", *(_total_cell(list(found.values())) for found in by_run)))
    return Table("Stage", _columns(runs), tuple(rows), "side")


def _stages(run: Compared) -> Iterator[tuple[str, StageFacts]]:
    """A run's complete stages; of a pipeline those of its jobs, with the job's name before them."""
    if not run.jobs:
        yield from ((stage.name, stage) for stage in run.facts.stages)
    for job in run.jobs:
        name = job.directory.name.partition("-")[2]
        yield from ((f"{name}.{stage.name}", stage) for stage in job.stages)


def _stage_cell(stage: StageFacts | None) -> Cell:
    return (
        Cell(MISSING)
        if stage is None
        else Cell(time_of(stage.seconds), note=", ".join(filter(None, (*_tokens(stage), _cost([stage])))))
    )


def _total_cell(stages: Sequence[StageFacts]) -> Cell:
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    return Cell(time_of(sum(known)) if known else MISSING, note=_cost(stages))


def _tokens(stage: StageFacts) -> Iterator[str]:
    for kind, count in stage.tokens.items():
        yield f"{count:,} {kind.replace('_', ' ')} tokens"


def _cost(stages: Iterable[StageFacts]) -> str:
    """What teachers' answers cost, where that is known."""
    bills = (bill for stage in stages for name, bill in stage.metrics.items() if name.startswith("spent"))
    costs = [cost for bill in bills if (cost := as_float(as_dict(bill).get("cost"))) is not None]
    return f"cost {sum(costs):.4g}" if costs else ""
