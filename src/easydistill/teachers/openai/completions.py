"""Endpoints of vLLM that take prompts as token ids, asked and routed as the API teacher's requests.

That is `POST {base_url}/completions`, and what else a subclass names."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai

from easydistill.teachers.openai.retry import Fault, Verdict
from easydistill.teachers.openai.teacher import PATIENCE, OpenAITeacher


class CompletionsClient(OpenAITeacher):
    """Subclasses make the bodies, and read what comes back."""

    async def _content(self, client: Any, body: dict[str, Any], awaited: str, path: str = "/completions") -> bytes:
        """The whole body of one response.

        Args:
            awaited: what it should hold, in words.
            path: of the endpoint, below `base_url`; or its address.

        Raises:
            Fault: it does not come.
        """
        patience = PATIENCE * self._config.timeout
        try:
            async with asyncio.timeout(patience):
                response = await client.post(
                    path, cast_to=httpx2.Response, body=body, stream=True, stream_cls=openai.AsyncStream
                )
                try:
                    content: bytes = await response.aread()
                    return content
                finally:
                    await response.aclose()
        except TimeoutError:
            raise Fault("timeout", f"no {awaited} after {patience:g} s", Verdict.RETRY) from None
