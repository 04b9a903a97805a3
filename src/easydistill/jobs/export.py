"""Writes a student in formats that other programs run, reads each back and compares it with the student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from easydistill.config.base import Unfit
from easydistill.config.job import JobConfig
from easydistill.engine.stage import Stage
from easydistill.exporting.config import (
    CalibrationConfig,
    CheckConfig,
    ComparedRowsConfig,
    ExportedModels,
    Format,
    split,
)
from easydistill.exporting.formats import FORMATS
from easydistill.exporting.rows import CalibrationRows, ComparedRows
from easydistill.exporting.stage import ExportStage


class Job(JobConfig):
    """`models.student` in every one of `formats`, each compared with it."""

    job_type: Literal["export"]
    """Which job this is."""
    models: ExportedModels
    formats: list[Format] = Field(min_length=1)
    """Such as `["safetensors", "gguf:f16", "gguf:q8_0"]`; each is written to `exports/` in the run directory."""
    dataset: ComparedRowsConfig | None = None
    """Rows with answers, at `labeled_path`, on which student and exports are compared; by default those that were held
    out in the run that made the student."""
    check: CheckConfig = CheckConfig()
    calibration: CalibrationConfig | None = None
    """Rows to which the rounding of `gptq` and `awq` is fitted; other formats need none."""

    @model_validator(mode="after")
    def _formats_differ(self) -> Job:
        double = next((spec for spec in self.formats if self.formats.count(spec) > 1), None)
        if double is not None:
            raise Unfit(f"formats: {double} is there twice", "remove one of them")
        if self.calibration is not None and not any(FORMATS.module(split(spec)[0]).CALIBRATES for spec in self.formats):
            raise Unfit("calibration is given, which none of the formats needs", "remove it, or add gptq or awq")
        return self


def plan(job: Job) -> list[Stage]:
    """A stage for each format."""
    student, first = job.models.student, job.formats[0]
    rows = ComparedRows(job.dataset, student)
    fitted = CalibrationRows(job.calibration or CalibrationConfig(), rows)
    return [ExportStage(spec, student, rows, job.check, fitted, counts_rows=spec == first) for spec in job.formats]
