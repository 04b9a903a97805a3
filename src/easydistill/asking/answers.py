"""Have a teacher answer requests, record the outcomes in a journal, and read them back.

Every answer is journalled as received, before it is parsed, so an answer that was paid for is never requested again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from easydistill.config.inference import Truncation
from easydistill.contracts.teacher import (
    Completion,
    Failure,
    GenerationRequest,
    Outcome,
    Teacher,
    outcome_from_record,
)
from easydistill.data.journal import Journal
from easydistill.data.records import content_hash
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import StageContext
from easydistill.teachers.ledger import Metered

JOURNAL = "journal.jsonl"
AUTHOR = "by"
"""Key of a journal record: the teacher that answered, where teachers are metered."""
KEPT = "kept"
"""Key of a journal record: a passing failure that `easydistill retry` was not asked to repeat."""


def unusable_reason(completion: Completion, truncation: Truncation = "keep") -> tuple[str, str] | None:
    """Why an answer cannot serve as a label, as (reason, detail); None if it can."""
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


def answer_all(
    teacher: Teacher, requests: Sequence[GenerationRequest], journal: Journal, context: StageContext, title: str
) -> None:
    """Have every request answered and journalled, except those that an earlier attempt finished."""
    attempted: set[str] = set()

    def done(key: str) -> bool:
        # A passing failure from an earlier attempt is worth another try; this attempt's were retried already.
        return key in journal and (key in attempted or not journal.note(key))

    author = _count_earlier(teacher, journal)
    finished = sum(done(request.key) for request in requests)
    with context.reporter.task(title, len(requests), done=finished) as task:
        failures = 0

        def record(outcomes: Sequence[Outcome]) -> None:
            nonlocal failures
            stamp = {"at": round(time.time(), 3), **author}
            journal.append(*({**context.redactor.value(item.as_record()), **stamp} for item in outcomes))
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
    """Enter the teacher's earlier answers in its ledger; returns what marks its new ones in the journal."""
    if not isinstance(teacher, Metered):
        return {}
    author = content_hash(teacher.identity())[:8]

    def count(record: dict[str, Any]) -> None:
        # Several teachers may share a journal. Records without a signature are from before that was possible.
        if record["kind"] == "completion" and record.get(AUTHOR, author) == author:
            outcome = _parsed(record)
            assert isinstance(outcome, Completion)
            teacher.ledger.add(outcome)

    for key in journal:
        if teacher.ledger.is_new(key):
            count(journal.get(key))
    # An answer that was requested again was paid for all the same.
    for number in range(journal.superseded):
        if teacher.ledger.is_new(f"superseded {number}"):
            count(journal.get_superseded(number))
    return {AUTHOR: author}


def spending(teacher: Teacher) -> dict[str, Any]:
    """What the teacher's answers cost, as metrics; empty for a teacher that is not metered."""
    return {"spent": teacher.ledger.as_metrics()} if isinstance(teacher, Metered) else {}


def worth_another_try(record: dict[str, Any]) -> bool:
    """Whether a journalled outcome is a failure that may have passed by now, so the request is sent again."""
    return bool(record.get("passing", False)) and not record.get(KEPT, False)


def journalled_outcome(journal: Journal, key: str) -> Outcome:
    """The recorded outcome of a request."""
    return _parsed(journal.get(key))


def _parsed(record: dict[str, Any]) -> Outcome:
    return outcome_from_record({name: value for name, value in record.items() if name not in {"at", AUTHOR, KEPT}})
