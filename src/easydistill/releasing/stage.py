"""The stage of the job `release`: writes a dataset folder, with its card and its checksums."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydistill.asking.outputs import write_rejected
from easydistill.data.files import show_directory, write_text
from easydistill.data.images import ImageReader, ImageStore, NoImages, RowImages
from easydistill.data.manifest import RowCounts
from easydistill.data.reading import Reading, at_most, read_rows
from easydistill.data.records import Rejection, Sample, content_hash, count_reasons, split_heldout
from easydistill.data.row_files import rows_of
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.spool import Rows, like
from easydistill.data.writing import only_writable
from easydistill.engine.checks import missing_folder, needs_extra, unreadable_rows
from easydistill.engine.stage import Estimate, StageContext, StageResult, lines_of
from easydistill.errors import ConfigIssue, DataError
from easydistill.releasing.card import Contents, card, teachers_of
from easydistill.releasing.census import Census, counter_of
from easydistill.releasing.config import ReleaseConfig, ReleasedRowsConfig
from easydistill.releasing.layouts import Layout, layout_of
from easydistill.releasing.lineage import Lineage, lineage_of
from easydistill.releasing.shards import Shard, checksums, schema_text, write_splits

FOLDER = "dataset"
"""Of the dataset, in the stage's directory and in the run directory."""
CARD, CHECKSUMS = "README.md", "checksums.sha256"
NOT_HELD = "not_in_schema"
"""Reason for which rows are rejected that the schema cannot hold."""
_MEGABYTE = 1_000_000
_EXAMPLES = 5
_NO_IMAGES = 'set "images": "bytes" in `release` to write its images into the files, or leave the row out'


class ReleaseStage:
    """Rows → a dataset folder."""

    name = "release"
    inputs: tuple[str, ...] = ()
    offers = (FOLDER,)
    classifies = False

    def __init__(self, dataset: ReleasedRowsConfig, config: ReleaseConfig, title: str) -> None:
        self._dataset, self._config, self._title = dataset, config, title

    def preflight(self) -> list[ConfigIssue]:
        issues = needs_extra("synth", "numpy")
        issues += unreadable_rows("dataset.labeled_path", self._dataset.labeled_path)
        issues += missing_folder("dataset.image_folder", self._dataset.image_folder)
        for number, run in enumerate(self._config.runs):
            issues += missing_folder(f"release.runs.{number}", run)
        if self._config.contamination is not None:
            issues += self._config.contamination.issues("release.contamination")
        if self._config.images == "bytes":
            issues += needs_extra("hub", "datasets")
        if self._config.tokenizer is not None:
            from easydistill.models.checks import file_issues, model_issues

            key, reference = "release.tokenizer", self._config.tokenizer
            issues += needs_extra("train", "transformers")
            issues += model_issues(key, reference) or file_issues(key, reference, False)
        return issues

    def fingerprint(self) -> dict[str, Any]:
        return {
            "config": self._config.writing_identity(),
            "title": self._title,
            "rows": hash_rows(self._dataset.labeled_path),
            "max_samples": self._dataset.max_samples,
            **self._dataset.reading_identity(),
            "lineage": self._lineage().identity(),
        }

    def estimate(self, directory: Path) -> Estimate:
        rows = sum(1 for _ in rows_of(self._dataset.labeled_path))
        return Estimate(rows=at_most(rows, self._dataset.max_samples), calls=0)

    def foretell(self) -> list[str]:
        def read(most: int) -> Reading:
            found = self._read(most, None)
            found.rejected += self._not_held(found.samples, self._layout(ImageStore(), Lineage()))
            return found

        without = [] if self._config.license else ["no licence is given: the card will say so (release.license)"]
        return [*without, *lines_of(read)]

    def _lineage(self) -> Lineage:
        return lineage_of(self._dataset.labeled_path, self._config.runs)

    def _layout(self, images: ImageStore, lineage: Lineage) -> Layout:
        judges = lineage.models("judge")
        judge = self._config.judge or (judges[-1] if judges else None)
        return layout_of(self._config, images, judge)

    def _read(self, most: int | None, context: StageContext | None) -> Reading:
        limit = at_most(most, self._dataset.max_samples)
        labelled = None if self._config.row_schema == "chat" else True
        path, columns = self._dataset.labeled_path, self._dataset.column_names
        found = read_rows(path, labelled=labelled, limit=limit, columns=columns, images=self._images(context))
        return only_writable(found, self.name)

    def _images(self, context: StageContext | None) -> RowImages:
        if self._config.images == "refuse":
            return NoImages(_NO_IMAGES)
        if context is None:
            return ImageReader.of(self._dataset, ImageStore())
        return ImageReader.of(self._dataset, context.images, context.image_sources)

    def _not_held(self, samples: Sequence[Sample], layout: Layout) -> list[Rejection]:
        """A rejection for each row that the schema cannot hold."""
        return [
            Rejection(sample.id, self.name, NOT_HELD, f'{why}: release it with "schema": "chat"')
            for sample in samples
            if (why := layout.why_not(sample)) is not None
        ]

    # --- the run ----------------------------------------------------------------------------------------------

    def run(self, context: StageContext) -> StageResult:
        found = self._read(None, context)
        context.notice(found.notices)
        lineage = self._lineage()
        layout = self._layout(context.images, lineage)
        entered = len(found.samples) + len(found.rejected)
        samples, rejected = self._held(found, layout)
        if not samples:
            write_rejected(context, rejected)
            raise DataError(f"{self._dataset.labeled_path}: no row can be released; e.g. {rejected[0].detail}")
        census = self._counted(samples, context)
        folder = context.directory / FOLDER
        partial = context.directory / f".{FOLDER}.partial"
        shards = write_splits(
            partial,
            self._split(samples),
            layout,
            int(self._config.shard_mb * _MEGABYTE),
            context.stop.raise_if_requested,
        )
        contents = Contents(
            self._title,
            self._config,
            shards,
            layout.unit,
            schema_text(partial, next(iter(shards.values()))[0]),
            census,
            lineage,
            content_hash(checksums(partial)),
            self._contamination(samples),
        )
        write_text(partial / CARD, card(contents))
        write_text(partial / CHECKSUMS, checksums(partial))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        self._show(folder, context.run_directory / FOLDER, shards)
        files = [shard.path for written in shards.values() for shard in written]
        return StageResult(
            outputs=[f"{FOLDER}/{name}" for name in (CARD, CHECKSUMS, *files)],
            rows=RowCounts(entered, len(samples), count_reasons(rejected)),
            rejected=rejected,
            metrics=self._figures(contents, entered, rejected),
        )

    def _held(self, found: Reading, layout: Layout) -> tuple[Rows[Sample], list[Rejection]]:
        """The rows that the schema can hold, and all that were rejected."""
        rejected = [*found.rejected, *self._not_held(found.samples, layout)]
        if len(rejected) == len(found.rejected):
            return found.samples, rejected
        kept: Rows[Sample] = like(found.samples)
        kept.extend(sample for sample in found.samples if layout.why_not(sample) is None)
        return kept, rejected

    def _counted(self, samples: Sequence[Sample], context: StageContext) -> Census:
        tokenizer = self._config.tokenizer
        census = Census(None if tokenizer is None else counter_of(tokenizer))
        context.reporter.say(f"  counting {len(samples):,} rows")
        census.add(samples)
        return census

    def _split(self, samples: Rows[Sample]) -> dict[str, Sequence[Sample]]:
        """The rows of each split, `train` first.

        Raises:
            DataError: a split has no rows.
        """
        rest, parts = samples, dict[str, Sequence[Sample]]()
        for name, part in self._config.splits.items():
            wanted = round(part * len(samples)) if part < 1 else int(part)
            rest, parts[name] = split_heldout(rest, wanted, self._config.seed)
        found: dict[str, Sequence[Sample]] = {"train": rest, **parts}
        for split, rows in found.items():
            if not rows:
                problem = f"the split {split} has no rows: {len(samples):,} rows are too few, or share too few prompts"
                raise DataError(f"{problem}\n    → lower release.splits")
        return found

    def _contamination(self, samples: Sequence[Sample]) -> dict[str, Any] | None:
        config = self._config.contamination
        if config is None:
            return None
        index = config.index()
        reasons: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for sample in samples:
            found = index.find_in(sample)
            if found is not None:
                reasons[found.reason] += 1
                if len(examples) < _EXAMPLES:
                    examples[sample.id] = found.detail
        against = ", ".join(config.names)
        return {
            "against": against,
            "problems": len(index),
            "rows": reasons.total(),
            **dict(reasons),
            **({"examples": examples} if examples else {}),
        }

    def _show(self, folder: Path, target: Path, shards: dict[str, list[Shard]]) -> None:
        """Make the dataset appear in the run directory."""
        show_directory(folder, target)
        for name in shards:
            show_directory(folder / name, target / name)

    def _figures(self, found: Contents, entered: int, rejected: Sequence[Rejection]) -> dict[str, Any]:
        """The metrics, which the report shows."""
        census, left, funnel = found.census, entered, [("candidates", entered)]
        for reason, count in count_reasons(rejected).items():
            left -= count
            funnel.append((reason, left))
        splits = {
            name: {
                found.unit: sum(shard.rows for shard in shards),
                "files": len(shards),
                "bytes": sum(shard.bytes for shard in shards),
            }
            for name, shards in found.shards.items()
        }
        return {
            "operator": self.name,
            "funnel": funnel,
            "folder": FOLDER,
            "teachers": ", ".join(teachers_of(self._config, census, found.lineage)),
            "splits": splits,
            "lengths": census.lengths(),
            "scores": {name: counts for name in ("rv", "cd") if (counts := census.histogram(name))},
            "tasks": dict(census.counts["tasks"].most_common()),
            "repetition": census.repetition(),
            **({"contamination": dict(found.contamination)} if found.contamination is not None else {}),
        }
