"""Calls of OpenAI's Batch API, repeated after temporary faults: upload, create, find, look up, download.

Only creating must not be repeated blindly: if a fault leaves open whether the server created the batch, it is searched
for first.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import openai

from easydistill.contracts.teacher import bare_url
from easydistill.engine.run_directory import LOGGER
from easydistill.errors import TeacherError
from easydistill.teachers.openai.chat_completion import garbage, parse_object
from easydistill.teachers.openai.faults import FaultReader
from easydistill.teachers.openai.retry import Fault, Verdict, pause

T = TypeVar("T")
METADATA = "easydistill"
"""Key of the token in a batch's metadata."""
OUTAGE_SECONDS = 3600.0
"""How long a server may be unreachable while it has batches in progress."""
CLOCKS_DIFFER = 86_400.0
"""Seconds by which the server's clock may be behind this machine's."""
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_ABSENT = frozenset({404, 405, 501})


@dataclass(frozen=True)
class ServerBatch:
    """A batch as the server reports it."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[dict[str, Any], ...] = ()
    """Why it failed as a whole; each may name the `line` that caused it."""
    answered: int = 0
    """Finished rows, with an answer or an error."""

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDED


@dataclass
class _Tries:
    """The earlier attempts of a repeated call."""

    count: int = 1
    last: Fault | None = None
    began: float = field(default_factory=time.monotonic)


class BatchCalls:
    """One server's Batch API.

    Args:
        url: the server.
        patience: seconds that one call may take.
        max_retries: how many times a call is repeated.
        longest_wait: longest pause before a repetition.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        url: str,
        faults: FaultReader,
        patience: float,
        max_retries: int,
        longest_wait: float,
    ) -> None:
        self._client, self._url, self._faults = client, bare_url(url), faults
        self._patience, self._max_retries, self._longest_wait = patience, max_retries, longest_wait
        self._jitter = random.Random()

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a batch's lines; returns the file's id.

        Raises:
            TeacherError: the server has no Batch API, refuses, or is unreachable.
        """

        async def call(tries: _Tries) -> str:
            response = await self._client.files.with_raw_response.create(file=(name, content), purpose="batch")
            return _text(_object(response.content), "id")

        return await self._repeat("uploading a batch", call, self._no_batches())

    async def create(self, file_id: str, window: str, token: str, since: float) -> ServerBatch:
        """Create a batch from an uploaded file; raises as `upload`.

        Args:
            token: stored in its metadata.
            since: when the token was created, in seconds since the epoch.
        """

        async def call(tries: _Tries) -> ServerBatch:
            if tries.last is not None and not tries.last.overload and (found := await self.find(token, since)):
                return found
            response = await self._client.batches.with_raw_response.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window=window,  # type: ignore[arg-type]  # other servers know other ones
                metadata={METADATA: token},
            )
            return _batch(_object(response.content))

        return await self._repeat("creating a batch", call, self._no_batches())

    async def find(self, token: str, since: float) -> ServerBatch | None:
        """The batch with a token in its metadata; None if the server has none.

        Raises:
            TeacherError: the server does not list its batches, refuses, or is unreachable.
        """
        absent = (
            f"{self._url} does not list its batches, so it is unknown whether one was created before the interruption\n"
            f"    → look for the one with {METADATA}={token} in its metadata; if there is none, remove {token}.json "
            "from the stage's batches/"
        )
        after: str | None = None
        while True:
            page = await self._repeat("listing batches", self._page_after(after), absent)
            for value in page:
                metadata = value.get("metadata")
                if isinstance(metadata, dict) and metadata.get(METADATA) == token:
                    return _batch(value)
            ages = [value["created_at"] for value in page if isinstance(value.get("created_at"), int | float)]
            if not page or (ages and min(ages) < since - CLOCKS_DIFFER) or page[-1].get("id") in {after, None}:
                return None
            after = page[-1]["id"]

    def _page_after(self, after: str | None) -> Callable[[_Tries], Awaitable[list[dict[str, Any]]]]:
        async def call(tries: _Tries) -> list[dict[str, Any]]:
            given = {"limit": 100} | ({"after": after} if after is not None else {})
            response = await self._client.batches.with_raw_response.list(**given)  # type: ignore[arg-type]
            listed = _object(response.content).get("data")
            if not isinstance(listed, list) or not all(isinstance(value, dict) for value in listed):
                raise garbage("the answer is not a list of batches", response.text)
            return listed

        return call

    async def look(self, batch_id: str, record_file: str) -> ServerBatch:
        """A batch's progress. Tolerates an outage of an hour.

        Raises:
            TeacherError: the server does not know it, refuses, or is unreachable for longer.
        """

        async def call(tries: _Tries) -> ServerBatch:
            response = await self._client.batches.with_raw_response.retrieve(batch_id)
            return _batch(_object(response.content))

        gone = f"{self._url} does not know batch {batch_id}\n    → {_resubmit(record_file)}"
        return await self._repeat(f"looking at batch {batch_id}", call, gone, OUTAGE_SECONDS)

    async def read(self, file_id: str, take: Callable[[bytes], None], record_file: str) -> None:
        """Pass every line of a file to `take`; starts again at the first line if the connection breaks."""

        async def call(tries: _Tries) -> None:
            async with self._client.files.with_streaming_response.content(file_id) as response:
                # Split as bytes: the SDK's lines also end at characters that may be unescaped in JSON.
                parts: list[bytes] = []
                async for block in response.iter_bytes():
                    first, *others = block.split(b"\n")
                    parts.append(first)
                    for other in others:
                        take(b"".join(parts))
                        parts = [other]
                take(b"".join(parts))

        gone = (
            f"{self._url} does not have file {file_id} with a batch's answers any more\n    → {_resubmit(record_file)}"
        )
        await self._repeat(f"reading {file_id}", call, gone)

    # --- repeating --------------------------------------------------------------------------------------------

    async def _repeat(self, what: str, call: Callable[[_Tries], Awaitable[T]], absent: str, outage: float = 0.0) -> T:
        """Call until it succeeds.

        Args:
            absent: the error message for a 404.
            outage: seconds during which to continue beyond the usual number of repetitions.

        Raises:
            TeacherError: it cannot succeed, or failed too often.
        """
        tries = _Tries()
        while True:
            try:
                async with asyncio.timeout(self._patience) as guard:
                    return await call(tries)
            except TimeoutError:
                if not guard.expired():
                    raise
                fault = Fault("timeout", f"not done after {self._patience:g} s", Verdict.RETRY)
            except TeacherError:
                raise
            except Exception as error:
                fault = self._faults.fault(error)
                if isinstance(error, openai.APIStatusError) and error.status_code in _ABSENT:
                    raise TeacherError(f"{absent}\n    (HTTP {error.status_code} when {what})") from None
            wait = pause(tries.count, fault, self._longest_wait, self._jitter)
            if fault.verdict is not Verdict.RETRY:
                raise self._faults.error(fault, self._url)
            spent = tries.count > self._max_retries and time.monotonic() - tries.began >= outage
            if wait is None or spent:
                raise TeacherError(
                    f"{self._url}: {what} failed {tries.count} times, at last with {self._faults.shown(str(fault))}\n"
                    "    → batches in progress are not lost; the same command continues with them"
                )
            LOGGER.info("%s: %s; again in %.1f s", what, self._faults.shown(str(fault)), wait)
            tries.count, tries.last = tries.count + 1, fault
            await asyncio.sleep(wait)

    def _no_batches(self) -> str:
        return f"{self._url} has no Batch API\n    → drop inference.batch, or name a server that has one"


def _resubmit(record_file: str) -> str:
    return f"if it cannot be had any more, remove {record_file}; its rows are then submitted anew"


def _object(content: bytes) -> dict[str, Any]:
    text = content.decode("utf-8", "replace")
    try:
        return parse_object(content, "the body", text)
    except RecursionError:
        raise garbage("the body is not JSON", text) from None


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise garbage(f"the body has no {name}", json.dumps(value))
    return found


def _file_id(value: dict[str, Any], name: str) -> str | None:
    found = value.get(name)
    return found if isinstance(found, str) and found else None


def _batch(value: dict[str, Any]) -> ServerBatch:
    reported = value.get("errors")
    listed = reported.get("data") if isinstance(reported, dict) else reported
    counts = value.get("request_counts")
    through = [counts.get(name) for name in ("completed", "failed")] if isinstance(counts, dict) else []
    return ServerBatch(
        id=_text(value, "id"),
        status=_text(value, "status").lower(),
        output_file_id=_file_id(value, "output_file_id"),
        error_file_id=_file_id(value, "error_file_id"),
        errors=tuple(error for error in listed if isinstance(error, dict)) if isinstance(listed, list) else (),
        answered=sum(count for count in through if isinstance(count, int)),
    )
