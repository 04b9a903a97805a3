"""Asking through the answers cache: what is in it is not asked, and what is answered is put into it.

The run's own journal comes first: a hit is handed to `record` like an answer, so the run has all its answers itself
and resumes without the cache. Where several processes ask an API at once, a request that one of them has in flight is
left out by the others, which take its answer from the cache; if it does not come, they ask themselves.

A request to an API is found by its key, which holds all that is sent. What a model on this machine reads is rendered
here, also by what the key does not hold: a template that only stands in for a missing one, the date. Such a request is
found only by stages with the same fingerprint, which has these things too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from easydistill.contracts.teacher import (
    MALFORMED_CALL,
    Completion,
    GenerationRequest,
    Outcome,
    RecordOutcomes,
    Teacher,
    outcome_from_record,
)
from easydistill.data.answers_cache import in_use
from easydistill.data.records import content_hash
from easydistill.engine.interrupt import StopSignal
from easydistill.teachers.ledger import Metered

if TYPE_CHECKING:
    from easydistill.data.answers_cache.store import AnswersCache

FROM_CACHE = "from_answers_cache"
"""Key of `Completion.extra` in the journal of a run that did not ask for the answer itself."""
LOOK_SECONDS = 0.3
"""Time between two looks for answers that other processes have asked for."""
_AT_ONCE = 64
"""Hits that are journalled in one line."""


def was_remembered(completion: Completion) -> bool:
    """Whether an answer came from the cache."""
    return bool(completion.extra.get(FROM_CACHE))


def worth_keeping(completion: Completion) -> bool:
    """Whether an answer is kept for other runs: not one that no row could use and another attempt may mend.

    An answer that was cut off at `max_new_tokens` is kept: the limit is part of its key.
    """
    if completion.finish_reason == "content_filter" or MALFORMED_CALL in completion.extra:
        return False
    said = bool((completion.text or "").strip()) or bool(completion.tool_calls)
    return said or completion.finish_reason == "length"


def kept_record(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the cache keeps of an outcome as a journal has it, without the run's own marks; None if it is not kept."""
    if record.get("kind") != "completion":
        return None
    values = {name: record[name] for name in Completion.__dataclass_fields__ if name in record}
    try:
        completion = Completion(**values)
    except TypeError:
        return None
    own = {name: value for name, value in completion.extra.items() if name != FROM_CACHE}
    return replace(completion, extra=own).as_record() if worth_keeping(completion) else None


def naming(teacher: Teacher, scope: str | None) -> Callable[[str], str] | None:
    """Request key → key in the cache; None if the teacher's answers are not kept.

    Args:
        scope: the fingerprint of the stage that asks, if there is one.
    """
    if isinstance(teacher, Metered):
        return lambda key: key
    return None if scope is None else lambda key: content_hash([scope, key])[:32]


def keep_earlier(
    teacher: Teacher, keys: Iterable[str], record_of: Callable[[str], Mapping[str, Any]], *, scope: str | None
) -> None:
    """Put answers of earlier attempts into the answers cache, if the run has been given one since.

    Args:
        keys: of requests that are answered.
        record_of: the journal's record of one.
    """
    cache, name = in_use(), naming(teacher, scope)
    if cache is None or name is None:
        return
    for key in keys:
        if name(key) not in cache and (kept := kept_record(record_of(key))) is not None:
            cache.put(name(key), {**kept, "key": name(key)})


def generate(
    teacher: Teacher,
    requests: Sequence[GenerationRequest],
    done: Callable[[str], bool],
    record: RecordOutcomes,
    stop: StopSignal,
    *,
    again: Callable[[str], bool] = lambda key: False,
    redact: Callable[[Any], Any] = lambda value: value,
    say: Callable[[str], None] = lambda text: None,
    scope: str | None = None,
) -> int:
    """`teacher.generate`, through the cache of this process's run if it has one.

    Args:
        again: whether a request is sent although it was answered before, as `easydistill retry` wants it.
        redact: hides secrets in a record as JSON.
        scope: as in `naming`.

    Returns the number of answers that came from the cache.
    """
    cache, name = in_use(), naming(teacher, scope)
    if cache is None or name is None:
        if not all(done(request.key) for request in requests):
            teacher.generate(requests, done, record, stop)
        return 0
    asking = _Remembering(cache, name, teacher, done, record, again, redact)
    asking.take_what_is_there(requests)
    while not stop.requested and not all(done(request.key) for request in requests):
        asking.ask(requests, stop)
        if not asking.waits_for:
            break
        asking.wait(stop, say)
    return asking.hits


class _Remembering:
    """One call of `generate`."""

    def __init__(
        self,
        cache: AnswersCache,
        name: Callable[[str], str],
        teacher: Teacher,
        done: Callable[[str], bool],
        record: RecordOutcomes,
        again: Callable[[str], bool],
        redact: Callable[[Any], Any],
    ) -> None:
        self._cache, self._name, self._teacher = cache, name, teacher
        self._done, self._record, self._again, self._redact = done, record, again, redact
        # Only what is paid for by the answer; and a model on this machine asks for whole batches.
        self._claims = cache.claims if isinstance(teacher, Metered) else None
        self.waits_for: dict[str, None] = {}
        """Requests that other processes have in flight."""
        self.hits = 0

    def take_what_is_there(self, requests: Sequence[GenerationRequest]) -> None:
        """Record the answers that the cache has already."""
        self._cache.refresh()
        known = self._known(requests)
        while some := list(islice(known, _AT_ONCE)):
            self._take(some)

    def _known(self, requests: Sequence[GenerationRequest]) -> Iterator[Completion]:
        for request in requests:
            key = request.key
            if self._name(key) in self._cache and not self._done(key) and not self._again(key):
                found = self._remembered(key)
                if found is not None:
                    yield found

    def _remembered(self, key: str) -> Completion | None:
        """The answer to a request that the cache has, marked as coming from it."""
        record = self._cache.get(self._name(key))
        if record is None:
            return None
        outcome = outcome_from_record({**record, "key": key})
        assert isinstance(outcome, Completion), "nothing else is kept"
        return replace(outcome, extra={**outcome.extra, FROM_CACHE: True})

    def _take(self, found: Sequence[Completion]) -> None:
        if isinstance(self._teacher, Metered):
            for completion in found:
                self._teacher.ledger.add_free(completion)
        self._record(found)
        self.hits += len(found)

    def _recall(self, key: str) -> bool:
        found = self._remembered(key)
        if found is not None:
            self._take([found])
        return found is not None

    # --- asking ---------------------------------------------------------------------------------------------------

    def ask(self, requests: Sequence[GenerationRequest], stop: StopSignal) -> None:
        """Have the teacher answer what no other process has in flight."""
        self.waits_for.clear()
        try:
            self._teacher.generate(requests, self.done, self.record, stop)
        finally:
            if self._claims is not None:
                self._claims.free_all()

    def done(self, key: str) -> bool:
        """Whether a request is not to be sent now. A teacher asks right before it would send it."""
        if self._done(key) or key in self.waits_for:
            return True
        if self._claims is None or self._again(key):
            return False
        if not self._claims.take(key):
            self.waits_for[key] = None
            return True
        # Another process may have got the answer after the last look, and before the claim was ours.
        self._cache.refresh()
        if not self._recall(key):
            return False
        self._claims.free(key)
        return True

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Journal outcomes, then keep the answers among them."""
        # Once an answer is journalled, nothing tells any more that it was wanted anew.
        anew = {outcome.key for outcome in outcomes if self._again(outcome.key)}
        self._record(outcomes)
        for outcome in outcomes:
            kept = kept_record(self._redact(outcome.as_record()))
            if kept is not None:
                name = self._name(outcome.key)
                self._cache.put(name, {**kept, "key": name}, replace=outcome.key in anew)
            if self._claims is not None:
                self._claims.free(outcome.key)

    def wait(self, stop: StopSignal, say: Callable[[str], None]) -> None:
        """Take answers that others have asked for, until all are there or one of them is not being asked any more."""
        assert self._claims is not None
        say(f"waiting for {len(self.waits_for):,} answers that another run is asking for")
        while not stop.requested:
            self._cache.refresh()
            for key in list(self.waits_for):
                if self._recall(key):
                    del self.waits_for[key]
            free = [key for key in self.waits_for if self._claims.take(key)]
            self._claims.free_all()
            if free or not self.waits_for:
                self.waits_for.clear()
                return
            time.sleep(LOOK_SECONDS)
