"""Label: the teacher answers every prompt. Seed rows in; labelled rows out, in the paper's format and as Parquet.

Every answer is journalled as received before anything looks inside it, so an answer that was paid for is never
asked for again: not after a kill, not when the config changes in a way that leaves the request the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from easydistill.config.dataset import RowsConfig
from easydistill.config.inference import SamplingConfig, Truncation
from easydistill.data.files import hash_file, replacing, set_aside, write_jsonl
from easydistill.data.formats import paper_row, read_samples, write_paper_json, write_parquet
from easydistill.data.journal import Journal
from easydistill.data.manifest import RowCounts
from easydistill.data.records import Message, Rejection, Sample, answer_message, content_hash, count_reasons
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import REJECTED, Estimate, Previewed, StageContext, StageResult
from easydistill.errors import ConfigIssue, DataError
from easydistill.teachers.base import (
    Completion,
    Failure,
    GenerationRequest,
    Outcome,
    Teacher,
    outcome_from_record,
    request_key,
)
from easydistill.teachers.base import TeacherPlan as TeacherPlan
from easydistill.teachers.ledger import Metered

LABELED_JSON = "labeled.json"
LABELED_PARQUET = "labeled.parquet"
JOURNAL = "journal.jsonl"
AUTHOR = "by"
"""Key of a journal record: which teacher answered, where teachers are metered."""
KEPT = "kept"
"""Key of a journal record: a passing failure that `easydistill retry` was told to leave as it is."""


def judge(completion: Completion, truncation: Truncation = "keep") -> tuple[str, str] | None:
    """Why a complete answer cannot be a label, as (reason, detail); None where it can."""
    if completion.finish_reason == "content_filter":
        return "content_filter", "the server's filter cut the answer"
    if completion.text is None:
        return "null_content", "the server sent `content: null`"
    if not completion.text.strip():
        detail = "the answer is empty" + (
            f" (finish reason {completion.finish_reason})" if completion.finish_reason else ""
        )
        return "empty_content", detail
    if truncation == "reject" and completion.finish_reason == "length":
        return "truncated", "the answer was cut off at inference.max_new_tokens"
    return None


class LabelStage:
    """The teacher's answers to `dataset.instruction_path`."""

    name = "label"
    inputs: tuple[str, ...] = ()
    offers = (LABELED_PARQUET, LABELED_JSON)

    def __init__(self, dataset: RowsConfig, inference: SamplingConfig, teacher: TeacherPlan) -> None:
        self._dataset = dataset
        self._inference = inference
        self._teacher = teacher

    def preflight(self) -> list[ConfigIssue]:
        issues = missing_file("dataset.instruction_path", self._dataset.instruction_path)
        return issues + labeled_path_issues(self._dataset.labeled_path) + self._teacher.preflight()

    def fingerprint(self) -> dict[str, Any]:
        assert self._dataset.instruction_path is not None
        return {
            "instructions": hash_file(Path(self._dataset.instruction_path)),
            "max_samples": self._dataset.max_samples,
            "inference": {"system_prompt": self._inference.system_prompt, **self._inference.sampling()},
            "teacher": self._teacher.identity(),
            "labeled_path": self._dataset.labeled_path,
            # Told only where it differs from what every earlier version did: finished stages stay finished.
            **({"truncation": "reject"} if self._inference.truncation == "reject" else {}),
        }

    def estimate(self, directory: Path) -> Estimate:
        from easydistill.stages.forecast import forecast_calls

        samples, _ = self._read()
        identity = self._teacher.identity()
        requests = {self._key(identity, sample): self._messages(sample) for sample in samples}
        return Estimate(
            rows=len(samples),
            tokens_at_most=len(samples) * self._inference.max_new_tokens,
            memory_bytes=self._teacher.memory_bytes(),
            # An API's model may be unknown until it is asked, and with it the keys.
            **forecast_calls(requests, directory, self._inference, keys_known=None not in identity.values()),
        )

    def preview(self, limit: int) -> list[Previewed]:
        samples, _ = self._read()
        sampling = self._inference.sampling()
        return [
            Previewed(self.name, "teacher", sample.id, self._messages(sample), sampling) for sample in samples[:limit]
        ]

    def _read(self) -> tuple[list[Sample], list[Rejection]]:
        assert self._dataset.instruction_path is not None
        return read_samples(Path(self._dataset.instruction_path), labelled=False, limit=self._dataset.max_samples)

    def _messages(self, sample: Sample) -> tuple[Message, ...]:
        system = self._inference.system_prompt
        if system and sample.messages[0]["role"] != "system":
            return ({"role": "system", "content": system}, *sample.messages)
        return sample.messages

    def _key(self, identity: dict[str, Any], sample: Sample) -> str:
        return request_key(identity, self._inference.sampling(), self._messages(sample))

    def run(self, context: StageContext) -> StageResult:
        samples, rejected = self._read()
        teacher = self._teacher.make(context)
        try:
            identity = teacher.identity()
            keys = {sample.id: self._key(identity, sample) for sample in samples}
            # Rows with the same prompt share one request: nothing is paid for twice.
            requests = {
                keys[sample.id]: GenerationRequest(keys[sample.id], self._messages(sample)) for sample in samples
            }
            with Journal(context.directory / JOURNAL, note=worth_another_try) as journal:
                answer_all(teacher, list(requests.values()), journal, context, "Labelling")
                context.stop.raise_if_requested()
                result = self._write(samples, rejected, keys, journal, context)
                return replace(result, metrics=spending(teacher))
        finally:
            teacher.close()

    def _write(
        self,
        samples: list[Sample],
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
            outcome = outcome_of(journal, keys[sample.id])
            if isinstance(outcome, Completion) and outcome.key not in counted:
                counted.add(outcome.key)
                tokens["prompt"] += outcome.prompt_tokens
                tokens["completion"] += outcome.completion_tokens
            accepted = labelled_or_rejected(sample, outcome, self.name, self._inference.truncation)
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
        write_paper_json(context.directory / LABELED_JSON, labelled)
        write_parquet(context.directory / LABELED_PARQUET, labelled)
        if self._dataset.labeled_path is not None:
            publish(context.directory, Path(self._dataset.labeled_path), map(paper_row, labelled))
        return StageResult(
            outputs=(LABELED_JSON, LABELED_PARQUET),
            rows=RowCounts(entered, len(labelled), count_reasons(rejected)),
            rejected=rejected,
            tokens=tokens,
        )


def answer_all(
    teacher: Teacher, requests: Sequence[GenerationRequest], journal: Journal, context: StageContext, title: str
) -> None:
    """Have every request answered into the journal, leaving out what an earlier attempt finished."""
    attempted: set[str] = set()

    def done(key: str) -> bool:
        # A passing failure from an earlier attempt is worth another try; one from this attempt was tried enough.
        return key in journal and (key in attempted or not journal.note(key))

    author = _count_earlier(teacher, journal)
    finished = sum(done(request.key) for request in requests)
    with context.reporter.task(title, len(requests), done=finished) as task:
        failures = 0

        def record(outcomes: Sequence[Outcome]) -> None:
            nonlocal failures
            told = {"at": round(time.time(), 3), **author}
            journal.append(*({**context.redactor.value(item.as_record()), **told} for item in outcomes))
            attempted.update(item.key for item in outcomes)
            tokens = sum(item.completion_tokens for item in outcomes if isinstance(item, Completion))
            failures += sum(isinstance(item, Failure) for item in outcomes)
            task.advance(len(outcomes), tokens, f"{failures} failed" if failures else None)

        if finished < len(requests):
            teacher.generate(requests, done, record, context.stop)
            if isinstance(teacher, Metered):
                LOGGER.info("%s: %s", title, teacher.ledger.words())
                if teacher.ledger.is_watched:
                    context.reporter.say(f"spent: {teacher.ledger.words()}")


def _count_earlier(teacher: Teacher, journal: Journal) -> dict[str, str]:
    """Have the teacher's ledger count what it answered in earlier attempts; what to write beside its new answers."""
    if not isinstance(teacher, Metered):
        return {}
    author = content_hash(teacher.identity())[:8]

    def count(record: dict[str, Any]) -> None:
        # Several teachers may share a journal. Before they signed their answers there was one.
        if record["kind"] == "completion" and record.get(AUTHOR, author) == author:
            outcome = _outcome(record)
            assert isinstance(outcome, Completion)
            teacher.ledger.add(outcome)

    for key in journal:
        if teacher.ledger.is_new(key):
            count(journal.get(key))
    # An answer that was asked for again was paid for all the same.
    for number in range(journal.superseded):
        if teacher.ledger.is_new(f"superseded {number}"):
            count(journal.get_superseded(number))
    return {AUTHOR: author}


def spending(teacher: Teacher) -> dict[str, Any]:
    """What the teacher's answers took, as metrics; empty where it counts nothing."""
    return {"spent": teacher.ledger.as_metrics()} if isinstance(teacher, Metered) else {}


def worth_another_try(record: dict[str, Any]) -> bool:
    """Whether a journalled outcome does not stand: a failure that may have passed."""
    return bool(record.get("passing", False)) and not record.get(KEPT, False)


def outcome_of(journal: Journal, key: str) -> Outcome:
    """What came of a request."""
    return _outcome(journal.get(key))


def _outcome(record: dict[str, Any]) -> Outcome:
    return outcome_from_record({name: value for name, value in record.items() if name not in {"at", AUTHOR, KEPT}})


def write_rejected(context: StageContext, rejected: Sequence[Rejection]) -> None:
    """Leave the rejected rows of a stage that fails because nothing else is left, for the user and for `retry`."""
    write_jsonl(context.directory / REJECTED, (context.redactor.value(row.as_row()) for row in rejected))


def labelled_or_rejected(
    sample: Sample, outcome: Outcome, stage: str, truncation: Truncation = "keep"
) -> Sample | Rejection:
    """The prompt with its answer, or why there is none."""
    if isinstance(outcome, Failure):
        asked = (outcome.key,)
        return Rejection(sample.id, stage, outcome.reason, outcome.detail, outcome.attempts, outcome.raw, asked)
    problem = judge(outcome, truncation)
    if problem is not None:
        raw = {"text": outcome.text, "reasoning": outcome.reasoning, "finish_reason": outcome.finish_reason}
        return Rejection(sample.id, stage, *problem, outcome.attempts, raw, (outcome.key,))
    assert outcome.text is not None
    answer = answer_message(outcome.text, outcome.reasoning)
    return Sample(sample.id, (*sample.messages, answer), sample.meta)


# --- the user's own file ------------------------------------------------------------------------------------


def publish(directory: Path, target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Put a stage's rows where the user wants them, in the format the suffix says; keep what was there before."""
    source = {".json": LABELED_JSON, ".parquet": LABELED_PARQUET}.get(target.suffix.lower())
    made = directory / f"published{target.suffix.lower()}"
    if source is not None:
        made = directory / source
    else:
        write_jsonl(made, rows)
    if target.exists():
        if hash_file(target) == hash_file(made):
            return
        LOGGER.warning("%s was there before; it is kept as %s", target, set_aside(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy, not a link: users edit this file.
    with replacing(target) as temporary:
        shutil.copyfile(made, temporary)


def labeled_path_issues(path: str | None) -> list[ConfigIssue]:
    """What is wrong with `dataset.labeled_path` as a place to write to."""
    if path is None or Path(path).suffix.lower() in {".json", ".jsonl", ".parquet"}:
        return []
    problem = f"{json.dumps(path)} has no suffix that tells its format"
    return [ConfigIssue("config", "dataset.labeled_path", problem, "end it in .json, .jsonl or .parquet")]


def missing_file(key: str, path: str | None) -> list[ConfigIssue]:
    """An issue if the file that `key` names is not there."""
    if path is None or Path(path).is_file():
        return []
    here = f"paths are relative to the working directory, {Path.cwd().name}/"
    return [ConfigIssue("config", key, f"{json.dumps(path)}: no such file", here)]
