"""Label: the teacher answers every prompt. Seed rows in; labelled rows out, in the paper's format and as Parquet.

An answer that was paid for is never requested again: neither after a kill, nor when the config changes without changing
the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easydistill.asking.answers import (
    JOURNAL,
    answer_all,
    journalled_outcome,
    read_answer,
    received,
    spending,
    worth_another_try,
)
from easydistill.asking.model import with_system_prompt
from easydistill.asking.outputs import (
    LABELED_JSON,
    LABELED_PARQUET,
    labeled_path_issues,
    publish_samples,
    write_rejected,
)
from easydistill.asking.row_teachers import RowTeachers
from easydistill.asking.work import asking_work
from easydistill.config.dataset import RowsConfig
from easydistill.config.inference import SamplingConfig
from easydistill.contracts.teacher import (
    Completion,
    Failure,
    GenerationRequest,
    Outcome,
    TeacherPlan,
    request_key,
)
from easydistill.data.images import ImageReader, ImageStore, NoImages, RowImages
from easydistill.data.journal import Journal
from easydistill.data.manifest import RowCounts
from easydistill.data.messages import Chat, as_context
from easydistill.data.reading import Reading, at_most, read_rows
from easydistill.data.records import CUT, Rejection, Sample, count_reasons, is_cut, marked
from easydistill.data.row_files.identity import hash_rows
from easydistill.data.writing import only_writable, write_paper_json, write_parquet
from easydistill.engine.checks import missing_folder, unreadable_rows
from easydistill.engine.devices import answering_bytes
from easydistill.engine.machine.settings import smaller_batches
from easydistill.engine.stage import Estimate, Previewed, StageContext, StageResult, Work, lines_of
from easydistill.errors import ConfigIssue, DataError
from easydistill.teachers.sizes import chat_bytes

BLIND_TEACHER = (
    "the teacher is given text alone and would not see it: label such rows by an API (inference.base_url), or remove "
    "them"
)
CUT_ANSWERS = "cut_answers"
"""Metric of a label stage: how many labels were cut off at `max_new_tokens`."""
IMAGE_ROWS = "image_rows"
"""Metric of a label stage: how many labelled rows have images."""


def _seen() -> None:
    """Rows with images are of use."""


@dataclass(frozen=True)
class OwnPlans:
    """Several teachers, each of which answers its own rows. They are loaded one after the other."""

    teachers: RowTeachers
    plans: Mapping[str, TeacherPlan]
    """By name."""


class LabelStage:
    """The teacher's answers to `dataset.instruction_path`."""

    name = "label"
    inputs: tuple[str, ...] = ()
    offers = (LABELED_PARQUET, LABELED_JSON)
    classifies = False

    def __init__(
        self,
        dataset: RowsConfig,
        inference: SamplingConfig,
        teacher: TeacherPlan | OwnPlans,
        *,
        unseen: Callable[[], str | None] = _seen,
    ) -> None:
        """
        Args:
            teacher: of all rows, or those of each.
            unseen: says why labelled rows with images would be of no use, if so: they are then refused before they are
                paid for. Asked once the rows are read.
        """
        self._unseen = unseen
        self._dataset = dataset
        self._inference = inference
        self._own = teacher.teachers if isinstance(teacher, OwnPlans) else None
        self._plans = teacher.plans if isinstance(teacher, OwnPlans) else {"": teacher}

    def _name(self, sample: Sample) -> str:
        """Whose answer a row gets."""
        return "" if self._own is None else self._own.name_of(sample)

    def preflight(self) -> list[ConfigIssue]:
        issues = unreadable_rows("dataset.instruction_path", self._dataset.instruction_path)
        issues += missing_folder("dataset.image_folder", self._dataset.image_folder)
        return (
            issues
            + labeled_path_issues(self._dataset.labeled_path)
            + [issue for plan in self._plans.values() for issue in plan.preflight()]
        )

    def fingerprint(self) -> dict[str, Any]:
        assert self._dataset.instruction_path is not None
        return {
            "instructions": hash_rows(self._dataset.instruction_path),
            "max_samples": self._dataset.max_samples,
            **self._dataset.reading_identity(),
            "inference": {"system_prompt": self._inference.system_prompt, **self._inference.sampling()},
            "teacher": self._identity(),
            "labeled_path": self._dataset.labeled_path,
            **self._inference.reading(),
            **({"image": image} if (image := self._inference.image_identity()) else {}),
            # Rows with images are labelled that would else be refused.
            **({"images_seen": True} if self._unseen is not _seen and self._unseen() is None else {}),
        }

    def less_memory(self) -> list[str]:
        return smaller_batches(self._inference)

    def _identity(self) -> dict[str, Any]:
        """Of the teacher, or of all and of what tells which rows are whose."""
        if self._own is None:
            return self._plans[""].identity()
        plans = {name: plan.identity() for name, plan in self._plans.items()}
        return {"column": self._own.models.teacher_column, "models": plans}

    def shows_date(self) -> bool:
        return any(plan.shows_date() for plan in self._plans.values())

    def estimate(self, directory: Path) -> Estimate:
        from easydistill.asking.forecast import forecast_calls

        samples = self._read().samples
        identities = {name: plan.identity() for name, plan in self._plans.items()}
        requests = {self._key(identities[self._name(sample)], sample): self._asked(sample) for sample in samples}
        memory = [plan.memory_bytes() for plan in self._plans.values()]
        return Estimate(
            rows=len(samples),
            tokens_at_most=len(samples) * self._inference.max_new_tokens,
            memory_bytes=None if None in memory else answering_bytes(max(size for size in memory if size is not None)),
            # An API's model name may be unknown until the server is contacted, and with it the keys.
            **forecast_calls(
                requests,
                directory,
                self._inference,
                keys_known=all(None not in identity.values() for identity in identities.values()),
            ),
        )

    def work(self) -> Work | None:
        samples = self._read().samples
        if len(self._plans) > 1:
            # Each has rows of its own, and their rates are not one.
            return None
        (plan,) = self._plans.values()
        return asking_work(self._inference, plan, len(samples), sum(chat_bytes(sample.prompt) for sample in samples))

    def preview(self, limit: int) -> list[Previewed]:
        samples = self._read().samples
        sampling = self._inference.sampling()
        return [
            Previewed(self.name, "teacher", sample.id, self._asked(sample).messages, sampling)
            for sample in samples[:limit]
        ]

    def foretell(self) -> list[str]:
        notes = dict.fromkeys(note for plan in self._plans.values() for note in plan.notes())
        return [*lines_of(self._read), *notes, *self._shares()]

    def _shares(self) -> list[str]:
        """Whose rows they are, if teachers are several and all rows name one that is known: else the run tells."""
        try:
            return [] if self._own is None else self._own.lines(self._own.counts(self._read().samples))
        except DataError as error:
            return [str(error)]

    def _images(self, context: StageContext | None) -> RowImages:
        if not all(plan.sees_images() for plan in self._plans.values()):
            return NoImages(BLIND_TEACHER)
        if (why := self._unseen()) is not None:
            return NoImages(why)
        if context is None:
            return ImageReader.of(self._dataset, ImageStore())
        return ImageReader.of(self._dataset, context.images, context.image_sources)

    def _read(self, most: int | None = None, context: StageContext | None = None) -> Reading:
        assert self._dataset.instruction_path is not None
        path, columns = self._dataset.instruction_path, self._dataset.column_names
        limit = at_most(most, self._dataset.max_samples)
        found = read_rows(path, labelled=False, limit=limit, columns=columns, images=self._images(context))
        # Before they are asked, not when the answers are written.
        return only_writable(found, self.name)

    def _asked(self, sample: Sample) -> Chat:
        """The prompt as it is sent."""
        chat = Chat.of(sample)
        return chat.with_messages(with_system_prompt(as_context(chat.messages), self._inference.system_prompt))

    def _key(self, identity: dict[str, Any], sample: Sample) -> str:
        return request_key(
            identity, self._inference.sampling(), self._asked(sample), image=self._inference.image_identity()
        )

    def run(self, context: StageContext) -> StageResult:
        found = self._read(context=context)
        samples, rejected = found.samples, found.rejected
        context.notice(found.notices)
        if self._own is not None:
            # Before any of them is asked: a row may name one that is not known.
            for line in self._own.lines(self._own.counts(samples)):
                context.reporter.say(f"  {line}")
        keys: dict[str, str] = {}
        spent: dict[str, Any] = {}
        with Journal(context.directory / JOURNAL, note=worth_another_try) as journal:
            for name, plan in self._plans.items():
                of_name = samples if self._own is None else [one for one in samples if self._name(one) == name]
                if len(of_name):
                    found_keys, found_spent = self._ask(plan, of_name, journal, context, name)
                    keys |= found_keys
                    spent |= found_spent
            result = self._write(samples, rejected, keys, journal, context)
            return replace(result, metrics={**result.metrics, **spent})

    def _ask(
        self, plan: TeacherPlan, samples: Sequence[Sample], journal: Journal, context: StageContext, name: str
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Have one teacher answer its rows; returns the keys of the requests by row, and what was spent."""
        teacher = plan.make(context)
        try:
            identity = teacher.identity()
            keys = {sample.id: self._key(identity, sample) for sample in samples}
            # Rows with the same prompt share one request, so no answer is paid for twice.
            requests = {
                keys[sample.id]: GenerationRequest.of(keys[sample.id], self._asked(sample)) for sample in samples
            }
            answer_all(teacher, list(requests.values()), journal, context, f"Labelling {name}".strip())
            context.stop.raise_if_requested()
            return keys, spending(teacher)
        finally:
            teacher.close()

    def _write(
        self,
        samples: Sequence[Sample],
        rejected: list[Rejection],
        keys: dict[str, str],
        journal: Journal,
        context: StageContext,
    ) -> StageResult:
        labelled: list[Sample] = []
        tokens = {"prompt": 0, "completion": 0}
        counted: set[str] = set()
        entered = len(samples) + len(rejected)
        for sample in samples:
            outcome = journalled_outcome(journal, keys[sample.id])
            if isinstance(outcome, Completion) and outcome.key not in counted:
                counted.add(outcome.key)
                tokens["prompt"] += outcome.prompt_tokens
                tokens["completion"] += outcome.completion_tokens
            accepted = labelled_or_rejected(sample, outcome, self.name, self._inference)
            if isinstance(accepted, Sample):
                labelled.append(accepted)
            else:
                rejected.append(accepted)
        if not labelled:
            write_rejected(context, rejected)
            reasons = ", ".join(f"{reason} ×{count}" for reason, count in count_reasons(rejected).items())
            raise DataError(
                f"the teacher gave no usable answer to any of {entered} rows: {reasons}\n    e.g. {rejected[0].detail}"
            )
        write_paper_json(context.directory / LABELED_JSON, labelled, context.images)
        write_parquet(context.directory / LABELED_PARQUET, labelled, context.images)
        if self._dataset.labeled_path is not None:
            publish_samples(context, Path(self._dataset.labeled_path), labelled)
        cut, shown = sum(map(is_cut, labelled)), sum(bool(sample.images) for sample in labelled)
        if cut:
            context.reporter.say(cut_words(cut, len(labelled)))
        return StageResult(
            outputs=(LABELED_JSON, LABELED_PARQUET),
            rows=RowCounts(entered, len(labelled), count_reasons(rejected)),
            rejected=rejected,
            tokens=tokens,
            metrics=({CUT_ANSWERS: cut} if cut else {}) | ({IMAGE_ROWS: shown} if shown else {}),
        )


def cut_words(cut: int, answers: int) -> str:
    """What users are told of answers that were cut off."""
    return (
        f"{cut} of {answers} answers were cut off at inference.max_new_tokens; no end is learned behind them\n"
        '    → raise inference.max_new_tokens, or set inference.truncation to "reject"'
    )


def labelled_or_rejected(
    sample: Sample, outcome: Outcome, stage: str, inference: SamplingConfig | None = None
) -> Sample | Rejection:
    """The prompt with its answer, or a rejection that says why there is none.

    A cut-off answer that is kept is marked in the row's `meta`, so that no end is learned behind it.

    Args:
        inference: says how answers become labels; by default as the sections' defaults say.
    """
    reading = inference or SamplingConfig()
    if isinstance(outcome, Failure):
        asked = (outcome.key,)
        return Rejection(sample.id, stage, outcome.reason, outcome.detail, outcome.attempts, outcome.raw, asked)
    answer = read_answer(outcome, reading.truncation, reading.thoughts)
    if isinstance(answer, tuple):
        reason, detail = answer
        return Rejection(sample.id, stage, reason, detail, outcome.attempts, received(outcome), (outcome.key,))
    labelled = replace(sample, messages=(*sample.messages, answer))
    return marked(labelled, cut=outcome.finish_reason == CUT)
