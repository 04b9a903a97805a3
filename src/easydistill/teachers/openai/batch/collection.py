"""Reads the lines of an ended batch. A row has an answer, a permanent failure, or neither and is submitted again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from easydistill.contracts.teacher import Completion, GenerationRequest, RecordOutcomes
from easydistill.teachers.ledger import is_counted
from easydistill.teachers.openai.batch.book import BatchBook
from easydistill.teachers.openai.batch.flight import BatchTools, Flight
from easydistill.teachers.openai.chat_completion import garbage, read_body
from easydistill.teachers.openai.retry import Fault, Verdict, from_error_object, from_status

_WAITS_FOR_ROOM = frozenset({"token_limit_exceeded"})
"""Codes of a batch that the server refuses until others have ended."""


class Collection:
    """The lines of one ended batch; answers and permanent failures are recorded as they are read.

    Args:
        requests: what is to be answered, by key; the batch may hold other rows of an earlier run.
        record: takes outcomes.
    """

    def __init__(
        self,
        tools: BatchTools,
        book: BatchBook,
        requests: Mapping[str, GenerationRequest],
        flight: Flight,
        record: RecordOutcomes,
    ) -> None:
        self._tools, self._book, self._requests, self._flight, self._record = tools, book, requests, flight, record
        self._sent: dict[str, dict[str, Any]] = {}
        self._keys = list(flight.open)
        self._unread = self._answers = 0
        self.faults: dict[str, Fault] = {}
        """Of rows that may be submitted again."""
        self.reshaped: set[str] = set()
        """Rows that are submitted again without what the server does not support."""
        self.fatal: Fault | None = None
        """Why no row can succeed. Batches in progress are still collected."""

    def take(self, line: bytes) -> None:
        """Take one line of answers or errors; a repeated line counts once."""
        if not line.strip():
            return
        try:
            value = json.loads(line)
            key = value["custom_id"]
        except (ValueError, RecursionError, LookupError, TypeError):
            self._unread += 1
            return
        if not isinstance(key, str) or key not in self._flight.open:
            return
        try:
            arguments: dict[str, Any] = self._tools.redactor.value(_arguments(value))
        except Fault as fault:
            self._faulted(key, fault)
        else:
            self._answered(key, arguments)

    def take_failure(self, errors: Sequence[dict[str, Any]]) -> bool:
        """Take the reasons why the batch failed as a whole; returns whether it only came when the server was full."""
        waits = False
        whole: Fault | None = None
        for error in errors:
            number, fault = error.get("line"), _fault_of(error)
            if isinstance(number, int) and 1 <= number <= self._flight.record.rows:
                lasting = fault.verdict is not Verdict.RETRY
                self._faulted(
                    self._key_at(number), fault if lasting else from_status(400, fault.detail, {}, time.time())
                )
                continue
            whole = whole or fault
            if error.get("code") in _WAITS_FOR_ROOM:
                waits = True
            elif fault.verdict in {Verdict.QUOTA, Verdict.FATAL}:
                self.fatal = self.fatal or fault
        if whole is not None:
            failed = Fault("batch_failed", whole.detail, Verdict.RETRY, raw=whole.raw)
            self.faults = dict.fromkeys(self._flight.open, failed) | self.faults
        return waits

    def _answered(self, key: str, arguments: dict[str, Any]) -> None:
        self._answers += 1
        extra = {**arguments["extra"], "batch": self._flight.id}
        answer = Completion(key=key, attempts=self._flight.record.attempt, **{**arguments, "extra": extra})
        size = self._flight.close(key, self._tools.ledger)
        self._record([answer])
        self._tools.ledger.add(answer, size)
        if is_counted(answer):
            self._tools.estimator.learn(size, answer.prompt_tokens, answer.completion_tokens)

    def _adapts_to(self, key: str, fault: Fault) -> bool:
        """Whether the server refused an optional part of a row that is omitted from now on."""
        if fault.reason not in {"http_400", "http_422"} or key not in self._requests:
            return False
        if not self._sent:
            self._sent.update(self._book.bodies(self._flight.record))
        return self._tools.features.adapts_to(fault, self._tools.body(self._requests[key]), self._sent[key])

    def _key_at(self, line: int) -> str:
        return self._keys[line - 1] if len(self._keys) == self._flight.record.rows else ""

    def _faulted(self, key: str, fault: Fault) -> None:
        if key not in self._flight.open:
            return
        if fault.verdict in {Verdict.QUOTA, Verdict.FATAL}:
            self.fatal = self.fatal or fault
        elif self._adapts_to(key, fault):
            self.reshaped.add(key)
        elif fault.verdict is Verdict.REJECT:
            self._flight.close(key, self._tools.ledger)
            self._record([self._tools.faults.failure(key, fault, self._flight.record.attempt)])
        else:
            self.faults[key] = fault

    def words(self) -> str:
        """A summary for the log."""
        unread = f", {self._unread} lines that cannot be read" if self._unread else ""
        return f"{self._answers:,} answers of {len(self._keys):,} rows{unread}"


def _arguments(line: dict[str, Any]) -> dict[str, Any]:
    """The answer in a line, as the arguments of `Completion`.

    Raises:
        Fault: the line has no answer.
    """
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        body, status = response.get("body"), response.get("status_code")
        text = body if isinstance(body, str) else json.dumps(body)
        if isinstance(status, int) and status >= 400:
            raise from_status(status, text, {}, time.time())
        return read_body(text.encode("utf-8", "surrogatepass"))
    if error:
        raise _fault_of(error)
    raise garbage("the line holds neither response nor error", json.dumps(line))


def _fault_of(error: Any) -> Fault:
    """The fault in an error object; `batch_expired` and `batch_cancelled` keep their names."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.startswith("batch_"):
        text = json.dumps({"error": error}, ensure_ascii=False)
        return Fault(code, text, Verdict.RETRY, raw=text)
    return from_error_object(error, time.time())
