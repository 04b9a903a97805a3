"""Have a teacher answer requests, record the outcomes in a journal, and read them back.

Every answer is journalled as received, before it is parsed, so an answer that was paid for is never requested again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from easydistill.config.inference import Thoughts, Truncation
from easydistill.contracts.teacher import (
    MALFORMED_CALL,
    Completion,
    Failure,
    GenerationRequest,
    Outcome,
    Teacher,
    outcome_from_record,
)
from easydistill.data.answers import MalformedCall, read_calls, split_thoughts
from easydistill.data.journal import Journal
from easydistill.data.messages import Message, ToolCall, answer_message
from easydistill.data.records import content_hash
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import StageContext
from easydistill.teachers.ledger import Metered
from easydistill.teachers.remembering import generate, keep_earlier, was_remembered

JOURNAL = "journal.jsonl"
AUTHOR = "by"
"""Key of a journal record: the teacher that answered, where teachers are metered."""
UNPAID = "unpaid "
"""Before the author of answers that cost nothing."""
Problem = tuple[str, str]
"""Why there is no usable answer: (reason, detail)."""
ASKED_AGAIN = "to be asked again"
"""Detail of the failure by which `easydistill retry` marks a request that is to be sent whatever is known of it."""
KEPT = "kept"
"""Key of a journal record: a passing failure that `easydistill retry` was not asked to repeat."""


def read_answer(
    completion: Completion, truncation: Truncation = "keep", thoughts: Thoughts = "apart"
) -> Message | Problem:
    """The message of an answer; or, if it cannot serve as a label, why not, as (reason, detail)."""
    if completion.finish_reason == "content_filter":
        return "content_filter", "the server's filter cut the answer"
    cut = completion.finish_reason == "length"
    try:
        calls = _calls(completion)
    except MalformedCall as error:
        # A call that was cut off will be cut off again.
        return ("truncated" if cut else MALFORMED_CALL), str(error)
    reasoning, text = completion.reasoning, completion.text
    if thoughts == "apart" and not reasoning and text is not None:
        reasoning, text = split_thoughts(text)
    if not calls and (problem := _says_nothing(completion, text)):
        return problem
    if truncation == "reject" and cut:
        return "truncated", "the answer was cut off at inference.max_new_tokens"
    return answer_message(text or "", reasoning, calls)


def _calls(completion: Completion) -> list[ToolCall]:
    calls = read_calls(completion.tool_calls)
    if MALFORMED_CALL in completion.extra:
        raise MalformedCall(completion.extra[MALFORMED_CALL])
    return calls


def _says_nothing(completion: Completion, text: str | None) -> Problem | None:
    """Why an answer without calls is none; None if it has text."""
    if text is None:
        return "null_content", "the server sent `content: null`"
    if text.strip():
        return None
    what = "the answer is empty" if not (completion.text or "").strip() else "the answer is thoughts alone"
    return "empty_content", what + (f" (finish reason {completion.finish_reason})" if completion.finish_reason else "")


def received(completion: Completion) -> dict[str, Any]:
    """What was received for a row that is rejected."""
    raw = {"text": completion.text, "reasoning": completion.reasoning, "finish_reason": completion.finish_reason}
    return raw | ({"tool_calls": completion.tool_calls} if completion.tool_calls else {})


def answer_all(
    teacher: Teacher, requests: Sequence[GenerationRequest], journal: Journal, context: StageContext, title: str
) -> None:
    """Have every request answered and journalled, except those that an earlier attempt finished.

    If the run has an answers cache, answers come from there as far as it has them, and new ones are kept there.
    """
    attempted: set[str] = set()

    def done(key: str) -> bool:
        # A passing failure from an earlier attempt is worth another try; this attempt's were retried already.
        return key in journal and (key in attempted or not journal.note(key))

    author = count_earlier(teacher, journal)
    # A local teacher answers whole batches, and so some questions again when rows are added: each counts once.
    finished = {request.key for request in requests if done(request.key)}
    open_before = len(requests) - len(finished)
    with context.reporter.task(title, len(requests), done=len(finished)) as task:
        failures = 0
        if isinstance(teacher, Metered):
            task.figures = teacher.ledger.as_metrics

        def record(outcomes: Sequence[Outcome]) -> None:
            nonlocal failures
            stamp = {"at": round(time.time(), 3), **author}
            journal.append(*({**context.redactor.value(item.as_record()), **stamp} for item in outcomes))
            attempted.update(item.key for item in outcomes)
            written = (item for item in outcomes if isinstance(item, Completion) and not was_remembered(item))
            tokens = sum(item.completion_tokens for item in written)
            failures += sum(isinstance(item, Failure) for item in outcomes)
            fresh = {item.key for item in outcomes} - finished
            finished.update(fresh)
            task.advance(len(fresh), tokens, f"{failures} failed" if failures else None)

        def again(key: str) -> bool:
            return key in journal and journal.get(key).get("detail") == ASKED_AGAIN

        scope = context.fingerprint
        answered = (request.key for request in requests if done(request.key))
        keep_earlier(teacher, answered, journal.get, scope=scope)
        if open_before:
            how: dict[str, Any] = {"again": again, "redact": context.redactor.value, "say": context.reporter.say}
            found = generate(teacher, requests, done, record, context.stop, scope=scope, **how)
            if found:
                context.reporter.say(f"  {found:,} of {len(requests):,} answers came from the answers cache")
            if isinstance(teacher, Metered):
                LOGGER.info("%s: %s", title, teacher.ledger.words())
                if teacher.ledger.is_watched:
                    context.reporter.say(f"spent: {teacher.ledger.words()}")


def count_earlier(teacher: Teacher, journal: Journal) -> dict[str, str]:
    """Enter the teacher's earlier answers in its ledger; returns what marks its new ones in the journal."""
    author = author_of(teacher)
    if not isinstance(teacher, Metered):
        # Signed too: a metered teacher that shares the journal would count what is not signed as its own.
        return {AUTHOR: f"{UNPAID}{author}"}

    def count(record: dict[str, Any]) -> None:
        # Several teachers may share a journal. Records without a signature are from before that was possible.
        if record["kind"] == "completion" and record.get(AUTHOR, author) == author:
            outcome = _parsed(record)
            assert isinstance(outcome, Completion)
            if was_remembered(outcome):
                teacher.ledger.add_free(outcome)
            else:
                teacher.ledger.add(outcome)

    for key in journal:
        if teacher.ledger.is_new(key):
            count(journal.get(key))
    # An answer that was requested again was paid for all the same.
    for number in range(journal.superseded):
        if teacher.ledger.is_new(f"superseded {number}"):
            count(journal.get_superseded(number))
    teacher.ledger.opened(journal.path, author)
    return {AUTHOR: author}


def author_of(teacher: Teacher) -> str:
    """What marks a teacher's answers in a journal that others share."""
    return content_hash(teacher.identity())[:8]


def spending(teacher: Teacher) -> dict[str, Any]:
    """What the teacher's answers cost, as metrics; empty for a teacher that is not metered."""
    if not isinstance(teacher, Metered):
        return {}
    return {"spent": teacher.ledger.as_metrics() | teacher.ledger.priced()}


def worth_another_try(record: dict[str, Any]) -> bool:
    """Whether a journalled outcome is a failure that may have passed by now, so the request is sent again."""
    return bool(record.get("passing", False)) and not record.get(KEPT, False)


def journalled_outcome(journal: Journal, key: str) -> Outcome:
    """The recorded outcome of a request."""
    return _parsed(journal.get(key))


def _parsed(record: dict[str, Any]) -> Outcome:
    return outcome_from_record({name: value for name, value in record.items() if name not in {"at", AUTHOR, KEPT}})
