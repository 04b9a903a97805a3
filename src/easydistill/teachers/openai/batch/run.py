"""Answers requests through OpenAI's Batch API: submits them as files, waits, and submits missing rows again.

A batch's content is on disk before it is sent, and its id as soon as it is known (`book.py`): a run killed at any
moment continues with the batches it had submitted. Lines are interpreted like single responses; a row is missing if it
has neither an answer nor a permanent failure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from easydistill.config.inference import BatchConfig
from easydistill.contracts.teacher import Failure, GenerationRequest, RecordOutcomes
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import TeacherError
from easydistill.teachers.openai.batch.book import BatchBook, BatchRecord, batch_line
from easydistill.teachers.openai.batch.calls import BatchCalls, ServerBatch
from easydistill.teachers.openai.batch.collection import Collection
from easydistill.teachers.openai.batch.flight import BatchTools, Flight
from easydistill.teachers.openai.retry import Fault, Verdict
from easydistill.teachers.sizes import Size

STOP_SECONDS = 0.1
"""How often to check whether the user asked to stop."""
LOOK_AGAIN_SECONDS = 2.0
"""Pause before the second search for a batch; one still not listed was never created."""


@dataclass(frozen=True)
class BatchStage:
    """Where a stage stores its batches and reports their progress."""

    book: BatchBook
    say: Callable[[str], None]


@dataclass(frozen=True)
class _Row:
    """A request waiting to be submitted."""

    request: GenerationRequest
    attempt: int


@dataclass(frozen=True)
class _Line:
    """A request about to be submitted, and the tokens reserved for it."""

    row: _Row
    size: Size
    content: bytes


class BatchRun:
    """One call of `generate` through batches.

    Args:
        requests: all requests.
        done: whether a request is finished already.
        record: takes outcomes.
    """

    def __init__(
        self,
        tools: BatchTools,
        stage: BatchStage,
        calls: BatchCalls,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
    ) -> None:
        self._tools, self._book, self._say, self._calls = tools, stage.book, stage.say, calls
        self._config = tools.config
        self._requests = {request.key: request for request in requests if not done(request.key)}
        self._done, self._record = done, record
        self._queue: deque[_Row] = deque()
        self._flights: list[Flight] = []
        self._refusal: TeacherError | None = None
        self._holds = False
        """Whether nothing is submitted until a batch has ended."""

    @property
    def _batch(self) -> BatchConfig:
        return self._config.batch or BatchConfig()

    async def run(self) -> None:
        """Continue with batches of an earlier run, submit the rest, wait for all.

        Without `inference.batch` nothing is submitted; batches of an earlier run are waited for.

        Raises:
            TeacherError: no row can succeed, the server has no Batch API, or the budget has no room for the rest.
        """
        await self._take_up()
        flying = {key for flight in self._flights for key in flight.open}
        self._queue.extend(_Row(request, 1) for key, request in self._requests.items() if key not in flying)
        while True:
            await self._submit_all()
            if self._refusal is not None:
                raise self._refusal
            if not self._flights:
                break
            if not await self._collect_ended():
                await asyncio.sleep(self._batch.poll_interval)
        if self._queue and self._config.batch is not None:
            size = self._tools.estimator.size(self._queue[0].request.messages, self._queue[0].request.tools)
            raise TeacherError(self._tools.ledger.exhausted(size))

    # --- what an earlier run left -----------------------------------------------------------------------------

    async def _take_up(self) -> None:
        for record in self._book.unfinished(self._tools.identity):
            sizes = {
                key: self._tools.estimator.size(body["messages"], body.get("tools", ()))
                for key, body in self._book.bodies(record)
                if not self._done(key)
            }
            if not sizes:
                self._book.finish(record)
            if not sizes.keys() & self._requests.keys():
                continue
            batch_id = record.batch_id or await self._lost_id(record)
            if batch_id is None:
                self._book.discard(record)
                continue
            self._say(f"  batch {batch_id} is in progress since an earlier run, with {record.rows:,} rows")
            for size in sizes.values():
                self._tools.ledger.reserve(size)
            self._flights.append(Flight(self._book.save(record, batch_id=batch_id), batch_id, sizes))

    async def _lost_id(self, record: BatchRecord) -> str | None:
        """The id of a batch that may have been created just before the run ended."""
        if record.file_id is None:
            return None
        found = await self._calls.find(record.token, record.created)
        if found is None:
            await asyncio.sleep(min(LOOK_AGAIN_SECONDS, self._batch.poll_interval))
            found = await self._calls.find(record.token, record.created)
        return None if found is None else found.id

    # --- submitting -------------------------------------------------------------------------------------------

    async def _submit_all(self) -> None:
        """Submit waiting rows, as far as the budget has room."""
        while self._config.batch is not None and self._refusal is None and not (self._holds and self._flights):
            self._holds = False
            lines = list(self._fitting())
            if not lines:
                return
            await self._submit(lines)

    def _fitting(self) -> Iterator[_Line]:
        """Take as many rows of one attempt from the queue as fit in a batch, and reserve their tokens."""
        rows = total = 0
        attempt: int | None = None
        while self._queue and rows < self._batch.max_requests and attempt in {None, self._queue[0].attempt}:
            row = self._queue[0]
            size = self._tools.estimator.size(row.request.messages, row.request.tools)
            line = batch_line(row.request.key, self._tools.features.shape(self._tools.body(row.request)))
            length = len(self._tools.sent(line))
            if length + 1 > self._batch.max_bytes:
                self._queue.popleft()
                detail = f"its line has {length:,} bytes, inference.batch.max_bytes is {self._batch.max_bytes:,}"
                self._record([Failure(row.request.key, "prompt_too_long", detail, row.attempt, passing=False)])
                continue
            if total + length + 1 > self._batch.max_bytes or not self._tools.ledger.has_room(size):
                return
            self._queue.popleft()
            self._tools.ledger.reserve(size)
            rows, total, attempt = rows + 1, total + length + 1, row.attempt
            yield _Line(row, size, line)

    async def _submit(self, lines: list[_Line]) -> None:
        attempt = lines[0].row.attempt
        record = self._book.add(self._tools.identity, attempt, [line.content for line in lines])
        file_id = await self._calls.upload(f"{record.token}.jsonl", self._uploaded(record))
        record = self._book.save(record, file_id=file_id)
        made = await self._calls.create(file_id, self._batch.completion_window, record.token, record.created)
        record = self._book.save(record, batch_id=made.id, status=made.status)
        self._flights.append(Flight(record, made.id, {line.row.request.key: line.size for line in lines}))
        again = f", attempt {attempt} of {self._batch.max_rounds}" if attempt > 1 else ""
        self._say(f"  batch {made.id}: {len(lines):,} rows submitted{again}")

    def _uploaded(self, record: BatchRecord) -> bytes:
        return b"".join(self._tools.sent(line) + b"\n" for line in self._book.content(record).splitlines())

    # --- collecting -------------------------------------------------------------------------------------------

    async def _collect_ended(self) -> bool:
        """Collect the batches that have ended; returns whether there were any."""
        ended = 0
        for flight in list(self._flights):
            batch = await self._calls.look(flight.id, str(self._book.path(flight.record)))
            if batch.status != flight.record.status:
                flight.record = self._book.save(flight.record, status=batch.status)
                self._say(f"  batch {flight.id}: {batch.status}")
            if batch.has_ended:
                await self._collect(flight, batch)
                ended += 1
        return ended > 0

    async def _collect(self, flight: Flight, batch: ServerBatch) -> None:
        """Record a batch's outcomes, and queue its missing rows."""
        found = Collection(self._tools, self._book, self._requests, flight, self._record)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            await self._calls.read(file_id, found.take, str(self._book.path(flight.record)))
        waits = batch.status == "failed" and found.take_failure(batch.errors)
        if found.fatal is not None and self._refusal is None:
            self._refusal = self._tools.faults.error(found.fatal, self._config.base_urls[0])
        self._holds = waits and len(self._flights) > 1
        for key in list(flight.open):
            fault = found.faults.get(key) or Fault(
                f"batch_{batch.status}", f"batch {batch.id} ended ({batch.status}) without it", Verdict.RETRY
            )
            self._missing(flight, key, fault, counts=not self._holds and key not in found.reshaped)
        self._book.finish(flight.record)
        self._flights.remove(flight)
        LOGGER.info("batch %s ended (%s): %s", batch.id, batch.status, found.words())
        if batch.status == "failed" and not self._holds and self._refusal is None:
            await asyncio.sleep(self._batch.poll_interval)

    def _missing(self, flight: Flight, key: str, fault: Fault, *, counts: bool) -> None:
        """Submit a row again that a batch left without an answer, or give it up."""
        flight.close(key, self._tools.ledger)
        request = self._requests.get(key)
        if request is None or self._config.batch is None or self._done(key) or self._refusal is not None:
            return
        attempt = flight.record.attempt
        if counts and attempt >= self._batch.max_rounds:
            self._record([self._tools.faults.failure(key, fault, attempt)])
        else:
            self._queue.append(_Row(request, attempt + counts))


async def until_stopped(work: Coroutine[Any, Any, None], stop: StopSignal) -> None:
    """Do `work`, but cancel it at once when the user asks to stop; a kill at any moment loses nothing."""
    task = asyncio.ensure_future(work)
    while not task.done() and not stop.requested:
        await asyncio.wait({task}, timeout=STOP_SECONDS)
    if not task.done():
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not stop.requested:
            raise
