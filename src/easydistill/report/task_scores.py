"""The job `evaluate`: what its stages left in `scores.json` and `speed.json`, as sections of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report import document as doc
from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING, plain
from easydistill.report.samples import TURN_LIMIT, turns_of
from easydistill.report.task_speed import SCORED, speed_section, with_below
from easydistill.report.values import as_dict, as_int, as_text, as_texts, json_object, shown

SCORES, SPEED = "scores.json", "speed.json"
_STAGES = {"tasks": SCORES, "speed": SPEED}
_ORDER = ("before", "after", "teacher", "other")
_ROLE_WORDS = {"before": "before training", "after": "after training", "teacher": "teacher", "other": ""}
_STYLES = {"before": f"{SCORED} before", "after": f"{SCORED} after"}
_FLIPS = {
    True: (("gained", "Right only with this model"), ("lost", "Right only with the baseline")),
    False: (("gained", "Better with this model"), ("lost", "Better with the baseline")),
}
"""Whether problems are simply right or wrong → kind of a flip, its title."""
FLIPS_IN_MARKDOWN = 3


@dataclass(frozen=True)
class Scores:
    """A stage's `scores.json`."""

    tasks: Sequence[Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    baseline: str
    contamination: Mapping[str, Any]
    versions: Mapping[str, Any]

    @property
    def ordered(self) -> list[str]:
        """Names of the models: before, after, teacher, others."""
        return sorted(self.models, key=lambda name: _ORDER.index(self.role(name)))

    def role(self, name: str) -> str:
        role = as_text(as_dict(self.models.get(name)).get("role"))
        return role if role in _ORDER else "other"


def _files(facts: Facts, kind: str) -> Iterator[Path]:
    """The files of complete stages of one kind, also those of a pipeline's jobs."""
    for number, stage in enumerate(facts.stages, start=1):
        folder = facts.directory / "stages" / f"{number}-{stage.name}"
        inner = sorted(folder.glob(f"stages/*-{kind}/{_STAGES[kind]}"))
        yield from (path for path in [folder / _STAGES[kind], *inner] if path.is_file())


def read_scores(path: Path) -> Scores:
    """A file of scores; what is missing stays missing."""
    found = json_object(path)
    tasks = found.get("tasks")
    return Scores(
        tasks=[as_dict(task) for task in tasks] if isinstance(tasks, list) else [],
        models={name: as_dict(model) for name, model in as_dict(found.get("models")).items()},
        baseline=as_text(found.get("baseline")),
        contamination=as_dict(found.get("contamination")),
        versions=as_dict(found.get("versions")),
    )


def task_sections(facts: Facts) -> Iterator[doc.Section]:
    """The sections of all evaluations of a run."""
    for number, path in enumerate(_files(facts, "tasks"), start=1):
        scores = read_scores(path)
        if scores.tasks:
            mark = "" if number == 1 else f"-{number}"
            yield _scores_section(scores, mark)
            yield from _flips_section(scores, mark)
            yield _how_section(scores, mark)
    for number, path in enumerate(_files(facts, "speed"), start=1):
        yield speed_section(json_object(path), "" if number == 1 else f"-{number}")


# --- scores -----------------------------------------------------------------------------------------------------


def _scores_section(scores: Scores, mark: str) -> doc.Section:
    intro = "Share of problems solved, with 95 % intervals (bootstrap over problems). Gap closed: how much of the "
    intro += "distance from the student before training to the teacher the trained student has covered."
    blocks: list[doc.Block] = [doc.Text(intro), _score_table(scores)]
    notes = [f"{_name(task)}: {note}" for task in scores.tasks for note in as_texts(task.get("notes"))]
    blocks += [doc.Text(note, "soft") for note in notes]
    if parts := _parts_table(scores):
        blocks += [doc.Text("Further figures", "heading"), parts]
    if pairs := _pairs_table(scores):
        words = f"Every model against {scores.baseline}, problem by problem."
        blocks += [doc.Text("Paired comparison", "heading"), doc.Text(words, "soft"), pairs]
    blocks += [doc.Text("The replies", "heading"), _replies_table(scores)]
    return doc.Section(f"tasks{mark}", "What the models can do", "Tasks", tuple(blocks), "hero")


def _name(task: Mapping[str, Any]) -> str:
    return as_text(task.get("name")) or MISSING


def _of(task: Mapping[str, Any], model: str) -> dict[str, Any]:
    return as_dict(as_dict(task.get("models")).get(model))


def percent(value: Any) -> str:
    number = as_float(value)
    return MISSING if number is None else f"{100 * number:.1f} %"


def _interval(value: Any, *, signed: bool = False) -> doc.Cell:
    """A mean with its interval below it."""
    found = as_dict(value)
    mean, low, high = (as_float(found.get(name)) for name in ("mean", "low", "high"))
    if mean is None:
        return doc.Cell(MISSING)
    sign = "+" if signed else ""
    text = f"{100 * mean:{sign}.1f} %".replace("-", "−")
    if low is None or high is None:
        return doc.Cell(text)
    return with_below(text, f"{100 * low:{sign}.1f} … {100 * high:{sign}.1f}".replace("-", "−"))


def _score_table(scores: Scores) -> doc.Table:
    names = scores.ordered
    published = [name for name in names if any("published" in _of(task, name) for task in scores.tasks)]
    gaps = any(as_float(task.get("gap_closed")) is not None for task in scores.tasks)
    rows = []
    for task in scores.tasks:
        cells = [_interval(_of(task, name).get("score")) for name in names]
        if gaps:
            gap = as_float(task.get("gap_closed"))
            cells.append(doc.Cell("no gap" if gap is None else f"{100 * gap:.0f} %".replace("-", "−")))
        cells += [_published(_of(task, name).get("published")) for name in published]
        count = next((as_int(_of(task, name).get("problems")) for name in names), None)
        means = [as_float(as_dict(_of(task, name).get("score")).get("mean")) for name in _bar_models(scores)]
        rows.append(doc.row(_name(task), *cells, notes=(f"{plain(count)} problems",), bars=doc.compared(means, 1.0)))
    columns = [doc.Column(_column(scores, name), _STYLES.get(scores.role(name), SCORED)) for name in names]
    columns += [doc.Column("Gap closed")] if gaps else []
    columns += [doc.Column(f"{name}, published") for name in published]
    return doc.Table("Task", tuple(columns), tuple(rows), style="tasks", bars="bars", note=" ({})")


def _bar_models(scores: Scores) -> list[str]:
    """One model for each of before, after and teacher, if there are all; else none, as bars would mean others."""
    by_role = {scores.role(name): name for name in scores.ordered}
    wanted = [by_role[role] for role in ("before", "after", "teacher") if role in by_role]
    return wanted if len(wanted) == 3 else []


def _column(scores: Scores, name: str) -> str:
    words = _ROLE_WORDS[scores.role(name)]
    return words or name if not words or words.startswith(name) else f"{name} ({words})"


def _published(value: Any) -> doc.Cell:
    number = as_float(value)
    return doc.Cell("–" if number is None else f"{number:.1f} %")


def _parts_table(scores: Scores) -> doc.Table | None:
    rows = []
    for task in scores.tasks:
        figures: dict[str, dict[str, Any]] = {}
        for name in scores.ordered:
            record = _of(task, name)
            named = {part.replace("_", " "): value for part, value in as_dict(record.get("parts")).items()}
            named |= {f"pass@{k}": value for k, value in as_dict(record.get("pass_at")).items()}
            for figure, value in named.items():
                figures.setdefault(figure, {})[name] = value
        for figure, values in figures.items():
            rows.append(doc.row(f"{_name(task)}: {figure}", *(_interval(values.get(name)) for name in scores.ordered)))
    columns = tuple(doc.Column(_column(scores, name), SCORED) for name in scores.ordered)
    return doc.Table("Figure", columns, tuple(rows), style="tight tasks") if rows else None


def _pairs_table(scores: Scores) -> doc.Table | None:
    rows = []
    for task in scores.tasks:
        for name in scores.ordered:
            found = as_dict(_of(task, name).get("comparison"))
            if not found:
                continue
            gained, lost = (plain(as_int(found.get(kind))) for kind in ("gained", "lost"))
            p = as_float(found.get("p"))
            shown_p = MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
            test = as_text(found.get("test"))
            difference = _interval(found.get("difference"), signed=True)
            rows.append(doc.row(f"{_name(task)}: {name}", difference, gained, lost, with_below(shown_p, test)))
    titles = ("Difference", "Better with this one", "Better with the baseline", "p")
    columns = tuple(doc.Column(title, SCORED) for title in titles)
    return doc.Table("Model", columns, tuple(rows), style="tight tasks") if rows else None


def _replies_table(scores: Scores) -> doc.Table:
    rows = []
    for task in scores.tasks:
        for name in scores.ordered:
            record = _of(task, name)
            counts = [plain(as_int(record.get(kind))) for kind in ("replies", "cut", "empty", "failed")]
            tokens = as_float(record.get("tokens_per_reply"))
            length = MISSING if tokens is None else f"{tokens:,.0f}"
            rows.append(doc.row(f"{_name(task)}: {name}", *counts, length))
    columns = doc.columns("Replies", "Cut off", "Empty", "Without a reply", "Tokens a reply")
    notes = ["Replies that were cut off at max_new_tokens are scored by what they say."]
    for task in scores.tasks:
        for name in scores.ordered:
            if unjudged := as_int(_of(task, name).get("unjudged")):
                why = "could not be judged (the judge refused, or wrote no score), and count as 0"
                notes.append(f"{_name(task)}: {unjudged:,} of {name}'s replies {why}.")
    return doc.Table("Model", columns, tuple(rows), style="tight tasks", footnotes=tuple(notes))


# --- flips ------------------------------------------------------------------------------------------------------


def _is_binary(found: Mapping[str, Any]) -> bool:
    """Whether both models' problems are right or wrong, and not shares of samples or points of a judge."""
    return not as_text(found.get("test")).startswith("paired permutation")


def _flips_section(scores: Scores, mark: str) -> Iterator[doc.Section]:
    blocks: list[doc.Block] = []
    for task in scores.tasks:
        for name in scores.ordered:
            found = as_dict(_of(task, name).get("comparison"))
            flips = as_dict(found.get("flips"))
            for kind, title in _FLIPS[_is_binary(found)]:
                samples = _flip_samples(flips.get(kind), name, scores.baseline)
                if samples:
                    heading = f"{_name(task)}, {name}: {title.lower()} ({plain(as_int(found.get(kind)))})"
                    blocks.append(doc.Fold(heading, samples, only="html"))
                    blocks.append(doc.Text(heading, "heading", only="md"))
                    blocks += [replace(sample, only="md") for sample in samples[:FLIPS_IN_MARKDOWN]]
    if blocks:
        intro = doc.Text(f"Problems that one of two models solved, or solved more often: against {scores.baseline}.")
        yield doc.Section(f"flips{mark}", "Answers that flipped", "Flips", (intro, *blocks))


def _flip_samples(value: Any, model: str, baseline: str) -> tuple[doc.Sample, ...]:
    found = []
    for flip in map(as_dict, value if isinstance(value, list) else []):
        turns = turns_of(flip.get("prompt"))
        prompt = "\n\n".join(turn.text for turn in turns[-1:])
        texts = [
            ("Problem", prompt, "prompt"),
            (f"Reply of {baseline}", shown(as_text(flip.get("before")) or "(empty)", TURN_LIMIT), "before"),
            (f"Reply of {model}", shown(as_text(flip.get("after")) or "(empty)", TURN_LIMIT), "after"),
        ]
        if reference := as_text(flip.get("reference")):
            texts.insert(1, ("Known answer", shown(reference, TURN_LIMIT), "reference"))
        found.append(doc.Sample(as_text(flip.get("problem")), tuple(texts)))
    return tuple(found)


# --- how it was measured ----------------------------------------------------------------------------------------


def _how_section(scores: Scores, mark: str) -> doc.Section:
    blocks: list[doc.Block] = [_settings_table(scores), doc.Text("The models", "heading"), _models_table(scores)]
    if scores.contamination:
        blocks += _contamination_blocks(scores)
    versions = tuple((name, as_text(version)) for name, version in scores.versions.items())
    blocks += [doc.Text("Versions", "heading"), doc.Pairs(versions)]
    return doc.Section(f"measured{mark}", "How it was measured", "Measured", tuple(blocks))


def _settings_table(scores: Scores) -> doc.Table:
    rows = []
    for task in scores.tasks:
        sampling = as_dict(task.get("sampling"))
        temperature = as_float(sampling.get("temperature"))
        way = "greedy" if not temperature else f"temperature {temperature:g}"
        if (top_p := as_float(sampling.get("top_p"))) is not None:
            way += f", top-p {top_p:g}"
        tokens = plain(as_int(sampling.get("max_new_tokens")))
        cells = (plain(as_int(task.get("samples"))), way, tokens, plain(task.get("shots")))
        rows.append(doc.row(_name(task), *cells, as_text(task.get("prompt_hash"))))
    columns = doc.columns("Replies a problem", "Sampling", "Tokens at most", "Worked examples", "Hash of the prompts")
    return doc.Table("Task", columns, tuple(rows), style="tight tasks")


def _models_table(scores: Scores) -> doc.Table:
    rows = []
    for name in scores.ordered:
        model = scores.models[name]
        template = as_text(model.get("template_hash")) or "the server's own"
        system = as_text(model.get("system_prompt")) or "none"
        cells = (as_text(model.get("model")) or MISSING, as_text(model.get("backend")), template, system)
        rows.append(doc.row(name, *cells))
    titles = ("Weights", "Backend", "Hash of the chat template", "System prompt")
    return doc.Table("Model", tuple(doc.Column(title, "") for title in titles), tuple(rows), style="tight tasks")


def _contamination_blocks(scores: Scores) -> list[doc.Block]:
    found = scores.contamination
    tasks = {name: as_dict(value) for name, value in as_dict(found.get("tasks")).items()}
    unread = as_int(found.get("unread"))
    words = f"{plain(as_int(found.get('rows')))} training rows were compared with the problems"
    words += f"; {unread:,} could not be read." if unread else "."
    columns = doc.columns("Rows that contain a problem", "the same text", "a shared run of tokens")
    kinds = ("rows", "benchmark_exact", "benchmark_overlap")
    rows = [doc.row(name, *(plain(value.get(kind, 0)) for kind in kinds)) for name, value in tasks.items()]
    blocks: list[doc.Block] = [doc.Text("Contamination", "heading"), doc.Text(words)]
    blocks.append(doc.Table("Task", columns, tuple(rows), style="tight tasks"))
    for value in tasks.values():
        examples = value.get("examples")
        for example in map(as_dict, examples if isinstance(examples, list) else []):
            blocks.append(doc.Text(as_text(example.get("detail")), "soft", f"Row {as_text(example.get('row'))}:"))
    return blocks
