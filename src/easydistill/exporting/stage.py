"""The stage that writes a model in one format, reads it back, and compares it with what it was.

Each format is a stage of its own: another format leaves those that are written as they are.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easydistill.data.files import show_directory, write_json
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Sample, count_reasons
from easydistill.engine.checks import needs_extra, unreadable_rows
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue, ModelError
from easydistill.exporting.config import CheckConfig, split
from easydistill.exporting.formats import FORMATS
from easydistill.exporting.rows import CalibrationRows, ComparedRows
from easydistill.methods.shared.rendering import student_renderer, template_identity, template_shows_date
from easydistill.methods.shared.rows import nothing_left, render_all
from easydistill.models.checks import file_issues, model_issues
from easydistill.models.reference import ModelSource, model_directory, resolve

if TYPE_CHECKING:
    from easydistill.contracts.export_format import Source, Written
    from easydistill.data.chat import Rendered

EXPORTED = "exported.json"
EXPORTS = "exported"
"""Metric of the stage: size, KL and agreement."""
FOLDER = "exports"
"""Folder of the run in which all exports appear."""


class ExportStage:
    """One format."""

    inputs: tuple[str, ...] = ()
    classifies = False

    def __init__(
        self,
        spec: str,
        student: str,
        rows: ComparedRows,
        check: CheckConfig,
        calibration: CalibrationRows,
        *,
        counts_rows: bool,
    ) -> None:
        """
        Args:
            spec: a format and its type of number.
            rows: on which the export is compared with the student.
            calibration: rows to which rounding is fitted, if the format needs some.
            counts_rows: whether it tells which of them are rejected: they are the same for all formats.
        """
        self._counts_rows = counts_rows
        self._format, self._number = split(spec)
        self._student, self._rows, self._check = student, rows, check
        self._calibration = calibration if FORMATS.module(self._format).CALIBRATES else None
        self.name = f"{self._format}-{self._number}"
        self.offers = (self.name, EXPORTED)

    def preflight(self) -> list[ConfigIssue]:
        key = "models.student"
        module = FORMATS.module(self._format)
        issues = needs_extra("train", "torch", "transformers", "safetensors", "gguf")
        issues += needs_extra(module.EXTRA, *module.IMPORTS)
        issues += model_issues(key, self._student) or file_issues(key, self._student, True)
        issues += self._row_issues() if not issues else []
        return issues or self.examine()

    def examine(self) -> list[ConfigIssue]:
        """Whether the format can hold the model; in a pipeline, the one that is yet to be trained."""
        if (config := _config_file(resolve(self._student))) is None:
            return []
        found = FORMATS.module(self._format).problem(config, self._number)
        return [ConfigIssue("config", "formats", f"{self._student}: {found[0]}", found[1])] if found else []

    def _row_issues(self) -> list[ConfigIssue]:
        """Issues of the rows; they are told of the student, which a pipeline may be yet to train."""
        if self._rows.labelled is None:
            problem = f"{self._student} does not lie in a run with held-out rows, on which exports could be compared"
            return [ConfigIssue("config", "models.student", problem, "set dataset.labeled_path: rows with answers")]
        issues = unreadable_rows("dataset.labeled_path", self._rows.labelled.dataset.labeled_path)
        return issues or self._calibration_issues()

    def _calibration_issues(self) -> list[ConfigIssue]:
        if self._calibration is None:
            return []
        if self._calibration.labelled is None:
            problem = f"{self._format} fits its rounding to rows, and {self._student} does not lie beside labelled ones"
            hint = "set calibration.labeled_path: rows with answers, such as those that it learnt from"
            return [ConfigIssue("config", "models.student", problem, hint)]
        return unreadable_rows("calibration.labeled_path", self._calibration.labelled.dataset.labeled_path)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "format": [self._format, self._number],
            "student": resolve(self._student).identity(),
            "rows": self._rows.known.fingerprint(),
            "check": self._check.identity(),
            **({"calibration": self._calibration.fingerprint()} if self._calibration is not None else {}),
            **template_identity(self._rows.known.dataset),
        }

    def shows_date(self) -> bool:
        if self._rows.labelled is None:
            return False
        return template_shows_date(self._rows.known.dataset, [self._student])

    def estimate(self, directory: Path) -> Estimate:
        return Estimate()

    def run(self, context: StageContext) -> StageResult:
        from easydistill.exporting.companions import write_companions
        from easydistill.exporting.reading_back import compare, refuse_other

        source = source_of(self._student)
        module = FORMATS.module(self._format)
        target = context.directory / self.name
        # What an attempt that was killed has left is not whole.
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        # The config of a model that was not on this machine before the run.
        if found := module.problem(source.config.to_dict(), self._number):
            raise ModelError(f"{self._student}: {found[0]}\n    → {found[1]}")
        context.reporter.say(f"  writing {self._format}, {self._number}")
        samples, rows, rejected = self._read(source, context)
        if self._calibration is not None:
            from easydistill.exporting.calibrating import calibration_of

            source = replace(source, calibration=calibration_of(self._calibration, source, samples, context))
        written: Written = module.write(source, self._number, target)
        context.stop.raise_if_requested()
        found = compare(source, module, target, written, rows, self._check, context)
        record = {
            "format": self._format,
            "number": self._number,
            "folder": f"{FOLDER}/{self.name}",
            "file": written.file,
            "notes": list(written.notes),
            **written.facts,
            **found,
        }
        refuse_other(record, lossless=self._number in module.LOSSLESS)
        write_companions(source, self._format, record, target)
        write_json(context.directory / EXPORTED, record)
        for note in written.notes:
            context.reporter.say(f"  note: {self.name}: {note}")
        show_directory(target, context.run_directory / FOLDER / self.name)
        outputs = [f"{self.name}/{path.name}" for path in sorted(target.iterdir())]
        told = rejected if self._counts_rows else []
        counts = RowCounts(len(rows) + len(told), len(rows), count_reasons(told))
        metrics = {EXPORTS: {name: record[name] for name in ("bytes", "kl", "agreement")}}
        return StageResult([*outputs, EXPORTED], counts, told, metrics=metrics)

    def _read(self, source: Source, context: StageContext) -> tuple[list[Sample], list[Rendered], list[Any]]:
        """The rows on which models are compared, the same as the student reads them, and those that are rejected.

        Raises:
            DataError: no row is left.
        """
        from easydistill.models.limits import Limits

        samples, _, refused = self._rows.known.read(context)
        renderer = student_renderer(self._rows.known.dataset, source.tokenizer, source.ends, context)
        limits = Limits.of_reference(source.directory)
        rows, rejected = render_all(renderer, list(samples), self._check.max_length, self.name, limits)
        if not rows:
            raise nothing_left("compare the export on", [*refused, *rejected])
        return [sample for sample, _ in rows], [row for _, row in rows], [*refused, *rejected]


def source_of(reference: str) -> Source:
    """What is known of the model that is exported, without its weights.

    Raises:
        ModelError: it cannot be loaded.
    """
    from easydistill.contracts.export_format import Source
    from easydistill.models.loading import eos_ids, full_config, load_generation_config, load_tokenizer

    directory = model_directory(resolve(reference))
    tokenizer = load_tokenizer(directory)
    ends = eos_ids(tokenizer, load_generation_config(directory))
    if not ends:
        raise ModelError(f"{reference}: no token ends its turns\n    → set eos_token in its tokenizer_config.json")
    return Source(reference, directory, full_config(directory), tokenizer, ends)


def _config_file(source: ModelSource) -> dict[str, Any] | None:
    """A model's config.json; None if it is not on this machine yet."""
    if source.path is None or source.is_gguf:
        return None
    found: dict[str, Any] = json.loads((source.path / "config.json").read_text(encoding="utf-8"))
    return found
