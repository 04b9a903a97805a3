"""The dataset card: a YAML header that dataset hubs and `datasets` read, and what a user wants to know of the rows.

It holds no date and no path, so the same rows have the same card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.releasing.census import Census
from easydistill.releasing.config import ReleaseConfig
from easydistill.releasing.lineage import Lineage, Step
from easydistill.releasing.shards import Shard
from easydistill.synthesis.operators.decontaminate import REASONS as CONTAMINATED

MOST_SHOWN = 30
"""Values of a field that a table lists."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGER = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))
_BAR = 24


@dataclass(frozen=True)
class Contents:
    """All that the card tells."""

    title: str
    config: ReleaseConfig
    shards: Mapping[str, Sequence[Shard]]
    unit: str
    """What a row of a file is: rows, or problems."""
    columns: Sequence[tuple[str, str]]
    census: Census
    lineage: Lineage
    digest: str
    """A hash of all files."""
    contamination: Mapping[str, Any] | None
    """What was measured against benchmarks, if that was asked for."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(shard.rows for shards in self.shards.values() for shard in shards)


def teachers_of(config: ReleaseConfig, census: Census, lineage: Lineage) -> list[str]:
    """Who wrote the answers: by the rows, by the runs, by the config."""
    return list(dict.fromkeys([*census.counts["teachers"], *lineage.models("teacher"), *config.teachers]))


def card(found: Contents) -> str:
    """The card's text."""
    return _header(found) + "\n".join([*_body(found), ""])


def _header(found: Contents) -> str:
    import yaml

    languages = [name for name, count in found.census.languages.most_common() if count * 100 >= found.census.rows]
    values: dict[str, Any] = {
        "pretty_name": found.title,
        **({"license": found.config.license} if found.config.license else {}),
        "language": languages,
        "task_categories": ["text-generation" if not found.census.having["images"] else "image-text-to-text"],
        "size_categories": [_size(found.rows)],
        "tags": ["easydistill", *(["reasoning"] if found.census.having["thoughts"] else [])],
        "configs": [
            {
                "config_name": "default",
                # `datasets` keys its cache of a local folder by the folder's name and this entry, not by the files: of
                # two folders with one name it would give the rows of the first for both.
                "description": f"{found.digest[:16]}",
                "data_files": [{"split": name, "path": f"{name}/*.parquet"} for name in found.shards],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _size(rows: int) -> str:
    """The hub's size category for a number of rows."""
    return next((name for limit, name in (*_SIZES, *_LARGER) if rows < limit), "100M<n<1B")


def _body(found: Contents) -> Iterator[str]:
    yield f"# {found.title}\n"
    if found.config.description:
        yield f"{found.config.description}\n"
    yield from _splits(found)
    yield from _columns(found)
    yield from _licence(found)
    yield from _made_by(found)
    yield from _lengths(found.census)
    yield from _counts(found)
    yield from _scores(found)
    yield from _cleaning(found)
    yield "## Files\n"
    yield "`sha256sum --check checksums.sha256` in this folder checks them.\n"


def _splits(found: Contents) -> Iterator[str]:
    rows = [
        (
            name,
            sum(shard.rows for shard in shards),
            len(shards),
            f"{sum(shard.bytes for shard in shards) / 1e6:,.1f} MB",
        )
        for name, shards in found.shards.items()
    ]
    yield _table(("split", found.unit, "files", "size"), rows)
    if found.unit != "rows":
        yield f"{found.census.rows:,} answers to {found.rows:,} {found.unit}.\n"


def _columns(found: Contents) -> Iterator[str]:
    yield "## Columns\n"
    yield _table(("column", "type"), [(f"`{name}`", f"`{kind}`") for name, kind in found.columns])


def _licence(found: Contents) -> Iterator[str]:
    yield "## Licence\n"
    stated = f"The dataset is released under `{found.config.license}`." if found.config.license else ""
    stated = stated or "No licence was given for the dataset."
    yield f"{stated} Check the licences of its sources and its teachers too.\n"
    by_input = {
        name: told["license"]
        for step in found.lineage.of("mix")
        for name, told in step.facts.get("inputs", {}).items()
        if "license" in told
    }
    if by_input:
        yield _table(("input", "licence"), list(by_input.items()))
    if found.census.counts["licences"]:
        yield _counted("licence of the row", found.census.counts["licences"])


def _made_by(found: Contents) -> Iterator[str]:
    teachers = teachers_of(found.config, found.census, found.lineage)
    yield "## How it was made\n"
    yield f"Teachers: {', '.join(teachers)}.\n" if teachers else "Neither the rows nor their runs name a teacher.\n"
    if judges := found.lineage.models("judge"):
        yield f"Judges: {', '.join(judges)}.\n"
    if found.lineage.steps:
        yield "The steps whose manifests were found, in order:\n"
        yield _table(("step", "model", "rows in", "rows out", "rejected"), map(_step, reversed(found.lineage.steps)))
    for step in found.lineage.of("mix"):
        yield from _mixed(step)
    if found.census.counts["teachers"]:
        yield _counted("teacher of the row", found.census.counts["teachers"])


def _step(step: Step) -> tuple[str, ...]:
    rows = step.manifest.rows
    written = step.facts.get("written", rows.left)
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in rows.rejected.items())
    return step.name, ", ".join(step.models.values()), f"{rows.entered:,}", f"{written:,}", rejected


def _mixed(step: Step) -> Iterator[str]:
    inputs: Mapping[str, Mapping[str, Any]] = step.facts.get("inputs", {})
    rows = [(name, told["read"], told["available"], told["taken"]) for name, told in inputs.items()]
    yield _table(("input of the mix", "rows read", "left to take", "taken"), rows)


def _lengths(census: Census) -> Iterator[str]:
    yield "## Lengths\n"
    lengths = {name: spread for name, spread in census.lengths().items() if spread}
    names = list(next(iter(lengths.values())))
    yield _table(("", *names), [(name, *(f"{spread[key]:,}" for key in names)) for name, spread in lengths.items()])
    rows = [(name, count, f"{count / census.rows:.1%}") for name, count in census.having.most_common()]
    if rows:
        yield _table(("rows with", "rows", "share"), rows)


def _counts(found: Contents) -> Iterator[str]:
    named = {"tasks": "task", "domains": "domain"}
    shown = {name: found.census.counts[name] for name in named if found.census.counts[name]}
    if shown:
        yield "## Tasks\n"
    for name, counts in shown.items():
        yield _counted(named[name], counts)


def _scores(found: Contents) -> Iterator[str]:
    rv, cd = found.census.histogram("rv"), found.census.histogram("cd")
    correct = found.census.counts["correct"]
    if not (rv or cd or correct):
        return
    yield "## Chains of thought\n"
    yield "Reasoning Verbosity (RV) and Cognitive Difficulty (CD), 0 to 9, as in OmniThought (arXiv 2505.10937).\n"
    levels = sorted({*rv, *cd}, key=float)
    largest = max([*rv.values(), *cd.values()], default=1) or 1
    if levels:
        rows = [
            (
                level,
                rv.get(level, 0),
                _bar(rv.get(level, 0), largest),
                cd.get(level, 0),
                _bar(cd.get(level, 0), largest),
            )
            for level in levels
        ]
        yield _table(("level", "RV", "", "CD", ""), rows)
    if correct:
        told = {"1": "correct", "0": "wrong", "True": "correct", "False": "wrong"}
        yield _counted("judged or verified", Counter({told.get(key, key): count for key, count in correct.items()}))


def _bar(count: int, largest: int) -> str:
    return "█" * -(-count * _BAR // largest)


def _cleaning(found: Contents) -> Iterator[str]:
    yield "## Repetitions and benchmarks\n"
    repeated = found.census.repetition()
    told = ", ".join(f"{count:,} {name}" for name, count in repeated.items())
    yield f"Measured: of {found.census.rows:,} answers, {told}.\n"
    for step in found.lineage.of("deduplicate"):
        yield f"Deduplicated: {_rejected(step, None)} of {step.manifest.rows.entered:,} rows were dropped.\n"
    for step in found.lineage.of("decontaminate"):
        problems = step.facts.get("problems")
        against = f" against {problems:,} problems" if isinstance(problems, int) else ""
        yield f"Decontaminated{against}: {_rejected(step, CONTAMINATED)} rows were dropped.\n"
    for step in found.lineage.of("mix"):
        if isinstance(about := step.facts.get("decontamination"), dict):
            yield f"Decontaminated against {about['against']}: {about['dropped']:,} rows were dropped.\n"
        if count := step.manifest.rows.rejected.get("duplicate"):
            yield f"Mixed: {count:,} rows were there more than once, by id and chat, and are here once.\n"
    if found.contamination is not None:
        yield (
            f"Measured against {found.contamination['against']} ({found.contamination['problems']:,} problems): "
            f"{found.contamination['rows']:,} rows share a text or a long run of tokens with one. None was dropped.\n"
        )
    mixed_clear = any("decontamination" in step.facts for step in found.lineage.of("mix"))
    if found.contamination is None and not mixed_clear and not found.lineage.of("decontaminate"):
        yield "Nobody looked for problems of benchmarks in it.\n"


def _rejected(step: Step, reasons: Sequence[str] | None) -> str:
    rejected = step.manifest.rows.rejected
    known = {reason: count for reason, count in rejected.items() if reasons is None or reason in reasons}
    told = ", ".join(f"{reason} {count:,}" for reason, count in known.items())
    return f"{sum(known.values()):,}" + (f" ({told})" if told else "")


def _counted(head: str, counts: Counter[str]) -> str:
    shown = counts.most_common(MOST_SHOWN)
    rest = counts.total() - sum(count for _, count in shown)
    rows = [*shown, *([(f"{len(counts) - len(shown):,} others", rest)] if rest else [])]
    return _table((head, "rows"), [(name, f"{count:,}") for name, count in rows])


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else _cell(str(cell)) for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
