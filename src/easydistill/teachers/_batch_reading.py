"""What the lines of a batch say, row by row: an answer, a lasting reason for none, or neither: submit it again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easydistill.teachers._chat_completion import garbage, read_body
from easydistill.teachers.retry import Fault, Verdict, from_error_object, from_status

if TYPE_CHECKING:
    from easydistill.teachers._batch import BatchRun, Flight

_WAITS_FOR_ROOM = frozenset({"token_limit_exceeded"})
"""Codes of a batch that the server refuses until others are through."""


class BatchReading:
    """The lines of one batch that has ended."""

    def __init__(self, run: BatchRun, flight: Flight) -> None:
        self._run, self._flight = run, flight
        self._sent: dict[str, dict[str, Any]] = {}
        self._keys = list(flight.open)
        self._unread = self._answers = 0
        self.faults: dict[str, Fault] = {}
        """Of rows that may be submitted again."""
        self.reshaped: set[str] = set()
        """Rows that are submitted again without what the server does not know."""

    def take(self, line: bytes) -> None:
        """Take one line, of answers or of errors. One that is there twice counts once."""
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
            arguments = self._run.redacted(_arguments(value))
        except Fault as fault:
            self._faulted(key, fault)
        else:
            self._answers += 1
            self._run.answered(self._flight, key, arguments)

    def take_failure(self, errors: Sequence[dict[str, Any]]) -> bool:
        """Take why the batch failed as a whole; whether it only came when the server had no room for it."""
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
                self._run.ends_with(fault)
        if whole is not None:
            told = Fault("batch_failed", whole.detail, Verdict.RETRY, raw=whole.raw)
            self.faults = dict.fromkeys(self._flight.open, told) | self.faults
        return waits

    def _key_at(self, line: int) -> str:
        return self._keys[line - 1] if len(self._keys) == self._flight.record.rows else ""

    def _faulted(self, key: str, fault: Fault) -> None:
        if key not in self._flight.open:
            return
        if fault.verdict in {Verdict.QUOTA, Verdict.FATAL}:
            self._run.ends_with(fault)
        elif self._run.could_be_reshaped(self._flight, key, fault, self._sent):
            self.reshaped.add(key)
        elif fault.verdict is Verdict.REJECT:
            self._run.refused(self._flight, key, fault)
        else:
            self.faults[key] = fault

    def words(self) -> str:
        """What was in it, for the log."""
        unread = f", {self._unread} lines that cannot be read" if self._unread else ""
        return f"{self._answers:,} answers of {len(self._keys):,} rows{unread}"


def _arguments(line: dict[str, Any]) -> dict[str, Any]:
    """The answer in a line, as the arguments of `Completion`.

    Raises:
        Fault: there is none.
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
