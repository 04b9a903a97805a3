"""A teacher whose copies answer in workers: requests go out, outcomes come back and are recorded here.

No answer is lost or recorded twice: a unit's outcomes are recorded together, once, when its worker tells them; and a
unit whose worker dies before is asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any, Protocol

from easydistill.contracts.teacher import Failure, GenerationRequest, RecordOutcomes
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.run_directory import LOGGER
from easydistill.engine.stage import StageContext
from easydistill.errors import TeacherError
from easydistill.teachers.pool.board import Board, Unit
from easydistill.teachers.pool.messages import Answered, Ask, Divide, Divided, Failed, Gone, Ready

LISTEN = 0.2
"""Seconds between two looks at the user's request to stop."""
MOST_DEATHS_IN_A_ROW = 4
"""A worker that dies as often, and answers nothing between, is not started again."""
WORKER_DIED = "worker_died"
"""Rejection reason: every worker that had the request died."""
_LESS_MEMORY = "lower inference.batch_size or inference.max_batch_tokens if memory runs out"


class Crew(Protocol):
    """Starts workers, which are known by their number from 0, and carries messages."""

    @property
    def size(self) -> int:
        """Most workers."""

    def start(self, worker: int) -> None:
        """Start a worker, in place of one that has ended."""

    def send(self, worker: int, message: Any) -> None:
        """Send a worker a message; nothing happens if it has ended."""

    def hear(self, seconds: float) -> list[tuple[int, Any]]:
        """What workers tell, waiting at most so long. `Gone` is a worker's last message, and frees what it had."""

    def end(self, resting: Collection[int]) -> None:
        """End all workers; those that are resting may free what they hold."""


class PooledTeacher:
    """Answers with the workers of a crew.

    Args:
        identity: identifies the model, as the teacher in a worker would.
        streams: whether workers take requests side by side; if not, in batches that depend on all requests.
        most: requests that a worker that streams has at once.
    """

    def __init__(
        self, crew: Crew, identity: Callable[[], dict[str, Any]], context: StageContext, *, streams: bool, most: int = 1
    ) -> None:
        self._crew = crew
        self._identity = identity
        self._say = context.reporter.say
        self._text = context.redactor.text
        self._streams = streams
        self._most = most if streams else 1
        self._numbers = count()
        self._running: set[int] = set()
        self._given_up: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._ready: set[int] = set()
        """Workers with a model."""
        self._resting: set[int] = set()
        """Workers with a model and nothing to do."""

    def identity(self) -> dict[str, Any]:
        return self._identity()

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> None:
        """As `Teacher.generate` says.

        Raises:
            TeacherError: no worker is left, or one and the same request raised an exception in two.
        """
        waiting = sum(not done(request.key) for request in requests)
        if not waiting:
            return
        self._start(min(waiting, self._crew.size))
        if self._streams:
            units = [self._unit([request]) for request in requests if not done(request.key)]
        else:
            units = self._batches(requests, done, record, stop)
        board = Board(units, self._most)

        def answered(unit: Unit, message: Answered) -> None:
            record(message.outcomes)

        def given_up(unit: Unit, lost: Gone) -> None:
            detail = f"two workers died with it, the last one {lost.how}; {_LESS_MEMORY}"
            record([Failure(request.key, WORKER_DIED, detail, unit.deaths, passing=True) for request in unit.requests])

        self._work(board, stop, lambda unit: Ask(unit.number, unit.requests), answered, given_up)

    def _unit(self, requests: Sequence[GenerationRequest]) -> Unit:
        return Unit(next(self._numbers), tuple(requests))

    def _batches(
        self,
        requests: Sequence[GenerationRequest],
        done: Callable[[str], bool],
        record: RecordOutcomes,
        stop: StopSignal,
    ) -> list[Unit]:
        """The batches that are not done, as a worker forms them from all requests."""
        found: list[Divided] = []

        def given_up(unit: Unit, lost: Gone) -> None:
            raise TeacherError(f"two workers died over the length of the prompts; the last {lost.how}{_shown(lost)}")

        board = Board([self._unit(requests)], 1)
        self._work(
            board,
            stop,
            lambda unit: Divide(unit.number, unit.requests),
            lambda unit, message: found.append(message),
            given_up,
        )
        if not found:
            return []
        (divided,) = found
        for failure in divided.failures:
            if not done(failure.key):
                record([failure])
        by_key = {request.key: request for request in requests}
        open_batches = (batch for batch in divided.batches if not all(map(done, batch)))
        return [self._unit([by_key[key] for key in batch]) for batch in open_batches]

    def _work(
        self,
        board: Board,
        stop: StopSignal,
        message_of: Callable[[Unit], Any],
        answered: Callable[[Unit, Any], None],
        given_up: Callable[[Unit, Gone], None],
    ) -> None:
        """Have every unit answered or given up; or, once `stop` is requested, those in hand."""
        while True:
            if not stop.requested:
                self._hand_out(board, message_of)
            if not board.in_hand and (stop.requested or not board.waiting):
                return
            for worker, message in self._crew.hear(LISTEN):
                if isinstance(message, Failed):
                    raise message.error
                if isinstance(message, Gone):
                    for unit in self._lost(worker, message, board):
                        given_up(unit, message)
                    continue
                if isinstance(message, Ready):
                    self._ready.add(worker)
                else:
                    self._deaths[worker] = 0
                    answered(board.answered(worker, message.number), message)
                if not board.has_any(worker):
                    self._resting.add(worker)

    def _hand_out(self, board: Board, message_of: Callable[[Unit], Any]) -> None:
        """Give running workers what they can take; start others for the rest."""
        able = self._able
        while able and board.waiting:
            # In turn, so that few requests are shared evenly.
            taken = [(worker, unit) for worker in able if (unit := board.take(worker)) is not None]
            for worker, unit in taken:
                self._start_one(worker)
                self._resting.discard(worker)
                self._crew.send(worker, message_of(unit))
            able = [worker for worker, _ in taken]

    @property
    def _able(self) -> list[int]:
        """Workers that are not given up, those that are running first."""
        able = [worker for worker in range(self._crew.size) if worker not in self._given_up]
        return sorted(able, key=lambda worker: worker not in self._running)

    def _start(self, most: int) -> None:
        for worker in self._able[:most]:
            self._start_one(worker)

    def _start_one(self, worker: int) -> None:
        if worker not in self._running:
            self._crew.start(worker)
            self._running.add(worker)

    def _lost(self, worker: int, lost: Gone, board: Board) -> list[Unit]:
        """Take notice of a worker's end; the units that are given up.

        Raises:
            TeacherError: an exception has ended two workers over the same unit; or no worker is left.
        """
        self._running.discard(worker)
        self._resting.discard(worker)
        given_up = board.died(worker, was_ready=worker in self._ready)
        self._ready.discard(worker)
        told = self._text(f"worker {worker + 1} {lost.how}{_shown(lost)}")
        LOGGER.warning("%s", told)
        if given_up and lost.raised:
            raise TeacherError(f"{told}\n    → so did the one before, with the same requests; {_LESS_MEMORY}")
        what = f"{sum(len(unit.requests) for unit in given_up)} requests are given up" if given_up else "going on"
        self._say(f"  {told}\n    → {what} without it")
        self._deaths[worker] += not given_up
        if self._deaths[worker] >= MOST_DEATHS_IN_A_ROW:
            self._given_up.add(worker)
            if len(self._given_up) == self._crew.size:
                raise TeacherError(
                    f"no worker is left: each died {MOST_DEATHS_IN_A_ROW} times in a row; {told}\n"
                    f"    → the answers so far are kept, and the same command goes on; {_LESS_MEMORY}"
                )
        return given_up

    def close(self) -> None:
        self._crew.end(self._resting)
        self._running.clear()


def _shown(lost: Gone) -> str:
    return "".join(f"\n    {line}" for line in lost.said.splitlines())
