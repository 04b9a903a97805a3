"""One request and its reply: the events of its rows, put together whole or chunk by chunk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from easydistill.contracts.teacher import MALFORMED_CALL
from easydistill.serving.bodies import ChatBody, CompletionBody
from easydistill.serving.chats import Chats, Prompt
from easydistill.serving.replies import Head, chat_logprobs, prompt_logprobs, text_logprobs, usage
from easydistill.serving.rows import Ended, Event, Failed, Listener, Row, Scored, Told


class Exchange:
    """A request under way. Made in the event loop that reads it.

    A choice whose text calls a tool in a way that cannot be read says why under `malformed_call`, which is ours; our
    own client reads it.

    Attributes:
        rows: its answers; those of the first prompt come first.
        scores: the log-probabilities of each prompt's tokens, if they are wanted.
    """

    def __init__(self, head: Head, chats: Chats, body: ChatBody | CompletionBody, prompts: Sequence[Prompt]) -> None:
        self.head, self.body, self.rows = head, body, list[Row]()
        self.scores: list[asyncio.Future[list[float]]] = []
        self._chats, self._prompts, self._held = chats, list(prompts), list(prompts)
        self._each = body.n or 1
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def listener(self, number: int) -> Listener:
        """Takes the events of a row, from any thread."""

        def listen(event: Event) -> None:
            # After the loop's end nobody waits.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return listen

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        """Closed again if an error ends this context."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up what is not written yet. May be called again."""
        for row in self.rows:
            row.cancelled = True
        for score in self.scores:
            score.cancel()
        while self._held:
            self._chats.release(self._held.pop())

    def _prompt(self, number: int) -> Prompt:
        return self._prompts[number // self._each]

    async def _next(self) -> AsyncIterator[tuple[int, Event]]:
        """The events of all rows, up to the last one's end.

        Raises:
            ApiProblem: a row has failed.
        """
        left = len(self.rows)
        while left:
            number, event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            left -= isinstance(event, Ended)
            yield number, event

    # --- whole --------------------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The whole reply.

        Raises:
            ApiProblem: there is none.
        """
        ended: dict[int, Ended] = {}
        scored: dict[int, list[Scored]] = {number: [] for number in range(len(self.rows))}
        async for number, event in self._next():
            if isinstance(event, Ended):
                ended[number] = event
            elif isinstance(event, Told) and event.scored is not None:
                scored[number].append(event.scored)
        given = [await score for score in self.scores]
        choices = [self._choice(number, ended[number], scored[number], given) for number in sorted(ended)]
        counts = usage([len(prompt.ids) for prompt in self._prompts], list(ended.values()))
        return self.head.body(choices, usage=counts)

    def _choice(
        self, number: int, ended: Ended, scored: Sequence[Scored], given: Sequence[Sequence[float]]
    ) -> dict[str, Any]:
        prompt, decode = self._prompt(number), self._chats.text_of
        if isinstance(self.body, ChatBody):
            message, problem = self._chats.answer(prompt, ended)
            choice: dict[str, Any] = {"index": number, "message": message, "finish_reason": _reason(message, ended)}
            choice["logprobs"] = chat_logprobs(scored, decode) if self.body.logprobs else None
            return choice if problem is None else {**choice, MALFORMED_CALL: problem}
        choice = {"index": number, "text": ended.text, "finish_reason": ended.reason, "logprobs": None}
        if self.body.logprobs is not None:
            choice["logprobs"] = text_logprobs(scored, decode)
        if given:
            choice["prompt_logprobs"] = prompt_logprobs(prompt.ids, given[number // self._each], decode)
        if self.body.return_token_ids:
            choice |= {"token_ids": list(ended.ids), "prompt_token_ids": prompt.ids}
        return choice

    # --- streamed -----------------------------------------------------------------------------------------------

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream.

        Raises:
            ApiProblem: a row has failed.
        """
        streams = [self._stream(number) for number in range(len(self.rows))]
        if self.head.is_chat:
            for number in range(len(streams)):
                yield self._chunk(number, {"delta": {"role": "assistant", "content": ""}})
        written: list[Ended] = []
        async for number, event in self._next():
            assert not isinstance(event, Failed)
            if isinstance(event, Ended):
                written.append(event)
            for part in streams[number].parts(event):
                yield self._chunk(number, part)
        if self.body.includes_usage:
            counts = usage([len(prompt.ids) for prompt in self._prompts], written)
            yield self.head.body([], chunk=True, usage=counts)

    def _chunk(self, number: int, part: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": number, "logprobs": None, "finish_reason": None, **part}
        more = {"usage": None} if self.body.includes_usage else {}
        return self.head.body([choice], chunk=True, **more)

    def _stream(self, number: int) -> _ChatParts | _TextParts:
        if isinstance(self.body, ChatBody):
            return _ChatParts(self._chats, self._prompt(number))
        return _TextParts(self._chats, self._prompt(number), bool(self.body.return_token_ids))


class _ChatParts:
    """An answer as the deltas of a message."""

    def __init__(self, chats: Chats, prompt: Prompt) -> None:
        self._chats, self._prompt, self._stream = chats, prompt, chats.stream(prompt)
        self._scored: list[Scored] = []

    def parts(self, event: Told | Ended) -> Iterator[dict[str, Any]]:
        if isinstance(event, Told):
            if event.scored is not None:
                self._scored.append(event.scored)
            yield from self._deltas(*self._stream.add(event.text))
            return
        message, problem = self._chats.answer(self._prompt, event)
        yield from self._deltas(*self._stream.end(message.get("reasoning_content", ""), message["content"] or ""))
        calls = message.get("tool_calls", [])
        if calls:
            numbered = [{"index": number, **call} for number, call in enumerate(calls)]
            yield {"delta": {"tool_calls": numbered}, **self._logprobs()}
        last = {"delta": {}, "finish_reason": _reason(message, event), **self._logprobs()}
        yield last if problem is None else {**last, MALFORMED_CALL: problem}

    def _deltas(self, thoughts: str, said: str) -> Iterator[dict[str, Any]]:
        delta = {"reasoning_content": thoughts} if thoughts else {}
        if said:
            delta["content"] = said
        if delta:
            yield {"delta": delta, **self._logprobs()}

    def _logprobs(self) -> dict[str, Any]:
        """The log-probabilities of the tokens since the last chunk."""
        scored, self._scored = self._scored, []
        return {"logprobs": chat_logprobs(scored, self._chats.text_of)} if scored else {}


class _TextParts:
    """An answer as pieces of text."""

    def __init__(self, chats: Chats, prompt: Prompt, with_ids: bool) -> None:
        self._chats, self._prompt, self._with_ids = chats, prompt, with_ids
        self._told, self._scored, self._start = "", list[Scored](), 0

    def parts(self, event: Told | Ended) -> Iterator[dict[str, Any]]:
        if isinstance(event, Told):
            self._told += event.text
            if event.scored is not None:
                self._scored.append(event.scored)
            if event.text:
                yield {"text": event.text, **self._logprobs()}
            return
        rest = event.text[len(self._told) :] if event.text.startswith(self._told) else ""
        last = {"text": rest, "finish_reason": event.reason, **self._logprobs()}
        if self._with_ids:
            last |= {"token_ids": list(event.ids), "prompt_token_ids": self._prompt.ids}
        yield last

    def _logprobs(self) -> dict[str, Any]:
        if not self._scored:
            return {}
        scored, self._scored = self._scored, []
        made = text_logprobs(scored, self._chats.text_of, self._start)
        self._start += sum(map(len, made["tokens"]))
        return {"logprobs": made}


def _reason(message: dict[str, Any], ended: Ended) -> str:
    return "tool_calls" if message.get("tool_calls") else ended.reason
