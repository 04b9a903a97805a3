"""Shared by the workers of one `generate`: whether and why it is over, connections, a thread to run in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openai

from easydistill.engine.interrupt import StopSignal
from easydistill.errors import TeacherError
from easydistill.teachers.openai.breaker import Breaker
from easydistill.teachers.openai.dispatch import Dispatcher
from easydistill.teachers.openai.routing import Endpoint


class Run:
    """State of one `generate`. Once it is over no request starts; those in flight are still recorded."""

    def __init__(self, stop: StopSignal, make_dispatcher: Callable[[Run], Dispatcher]) -> None:
        self.stop = stop
        self.halt = asyncio.Event()
        self.error: TeacherError | None = None
        """Why it ends early."""
        self.bug: Exception | None = None
        """An exception that is no fault of server or network."""
        self.breaker = Breaker()
        self.dispatcher = make_dispatcher(self)

    @property
    def over(self) -> bool:
        return self.stop.requested or self.halt.is_set()

    def end(self, error: TeacherError | None = None, bug: Exception | None = None) -> None:
        self.error, self.bug = self.error or error, self.bug or bug
        self.halt.set()
        self.dispatcher.wake()

    async def watch(self, poll_seconds: float, broken: Callable[[], TeacherError | None]) -> None:
        """End the run, waking all workers, once the user asks to stop, or something is `broken`."""
        while not self.stop.requested and (error := broken()) is None:
            await asyncio.sleep(poll_seconds)
        self.end(None if self.stop.requested else error)

    async def sleep(self, seconds: float) -> bool:
        """Sleep; False if the run is over before that."""
        try:
            async with asyncio.timeout(seconds):
                await self.halt.wait()
        except TimeoutError:
            return not self.over
        return False


@dataclass(frozen=True)
class Clients:
    """The SDK's clients for one pool of workers: one for each server, created when first needed."""

    make: Callable[[str], openai.AsyncOpenAI]
    made: dict[str, openai.AsyncOpenAI]

    def of(self, endpoint: Endpoint) -> openai.AsyncOpenAI:
        if endpoint.url not in self.made:
            self.made[endpoint.url] = self.make(endpoint.url)
        return self.made[endpoint.url]

    async def aclose(self) -> None:
        for client in self.made.values():
            await client.close()


def in_thread(work: Callable[[], TeacherError | None], stop: StopSignal) -> TeacherError | None:
    """Run in another thread, because an event loop runs in this one (as in a notebook), and return the result."""
    with ThreadPoolExecutor(1, "easydistill-openai") as pool:
        try:
            return pool.submit(work).result()
        except KeyboardInterrupt:
            stop.request()  # leaving the pool waits for the requests in flight
            raise
