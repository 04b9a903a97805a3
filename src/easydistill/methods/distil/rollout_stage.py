"""Rollout: the untrained student answers the training prompts, for losses that learn from the student's own answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from easydistill.asking.answers import JOURNAL, answer_all, journalled_outcome, worth_another_try
from easydistill.asking.label import labelled_or_rejected
from easydistill.config.inference import SamplingConfig, TransformersOptions
from easydistill.config.models import ModelsConfig
from easydistill.contracts.teacher import GenerationRequest, Teacher, request_key
from easydistill.data.journal import Journal
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Rejection, Sample, count_reasons
from easydistill.data.writing import write_parquet
from easydistill.engine.stage import Estimate, StageContext, StageResult
from easydistill.errors import ConfigIssue
from easydistill.methods.distil.rows import ROLLOUTS, SUFFIX
from easydistill.methods.shared.rendering import template_identity, template_shows_date
from easydistill.methods.shared.rows import LabelledRows
from easydistill.models.checks import student_issues
from easydistill.models.student import Student, build_student, student_identity, student_references


class RolloutStage:
    """The untrained student's answers to the training prompts."""

    name = "rollout"
    offers: tuple[str, ...] = ()
    classifies = False

    def __init__(self, rows: LabelledRows, models: ModelsConfig, inference: TransformersOptions) -> None:
        self._rows = rows
        self._models = models
        self._inference = inference
        self.inputs = rows.inputs

    def preflight(self) -> list[ConfigIssue]:
        return student_issues(self._models)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "rows": self._rows.fingerprint(),
            "student": student_identity(self._models),
            "inference": self._inference.sampling(),
            **template_identity(self._rows.dataset),
        }

    def shows_date(self) -> bool:
        return template_shows_date(self._rows.dataset, student_references(self._models))

    def estimate(self, directory: Path) -> Estimate:
        return Estimate()

    def _student(self, context: StageContext) -> Teacher:
        from easydistill.models.loading import choose_dtype, device
        from easydistill.teachers.transformers import TransformersTeacher

        def make() -> Student:
            return build_student(self._models, choose_dtype(self._inference.dtype, device()))

        dataset = self._rows.dataset
        given = {"template": dataset.template, "chat_template_kwargs": dict(dataset.template_kwargs or {})}
        inference = self._inference.model_copy(update=given)
        return TransformersTeacher("student", inference, make=make, date=context.started, images=context.images)

    def run(self, context: StageContext) -> StageResult:
        samples, _, _ = self._rows.read(context)
        identity = student_identity(self._models)
        sampling = self._inference.sampling()
        keys = {sample.id: request_key(identity, sampling, sample.prompt_chat) for sample in samples}
        requests = {keys[sample.id]: GenerationRequest.of(keys[sample.id], sample.prompt_chat) for sample in samples}
        student = self._student(context)
        try:
            with Journal(context.directory / JOURNAL, note=worth_another_try) as journal:
                answer_all(student, list(requests.values()), journal, context, "Rolling out")
                context.stop.raise_if_requested()
                found = [
                    labelled_or_rejected(
                        replace(sample, id=f"{sample.id}{SUFFIX}", messages=sample.prompt, meta={}),
                        journalled_outcome(journal, keys[sample.id]),
                        self.name,
                        SamplingConfig(thoughts="inline"),
                    )
                    for sample in samples
                ]
        finally:
            student.close()
        own = [item for item in found if isinstance(item, Sample)]
        rejected = [item for item in found if isinstance(item, Rejection)]
        write_parquet(context.directory / ROLLOUTS, own, context.images)
        return StageResult((ROLLOUTS,), RowCounts(len(samples), len(own), count_reasons(rejected)), rejected)
