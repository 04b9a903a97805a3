"""Optional parts of a request that a server turned out not to support, and what to send instead.

A server that refuses a JSON schema is asked for any JSON, and if it refuses that too, for text. This is remembered for
each schema, since a server may fail to compile one and accept the next. Thoughts of earlier turns, `reasoning_content`
in the messages, are left out where a server refuses them; most chat templates do not show them anyway. Tools and
template variables are never left out: the answer would be to another question.
"""

from __future__ import annotations

from typing import Any

from easydistill.data.records import content_hash
from easydistill.engine.run_directory import LOGGER
from easydistill.teachers.openai.retry import Fault

_THOUGHTS = "reasoning_content"
_FORMAT_WORDS = (
    "response_format",
    "json_schema",
    "json schema",
    "json_object",
    "structured output",
    "guided",
    "grammar",
)


class Features:
    """What one server supports."""

    def __init__(self) -> None:
        self._length_name = "max_tokens"
        self._takes_usage = True
        self._takes_thoughts = True
        self._steps: dict[str, int] = {}
        """Schema's hash → fallback: 1 for `json_object`, 2 for no format at all."""

    def shape(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body in the form that this server accepts."""
        shaped = dict(body)
        if "max_tokens" in shaped:
            shaped[self._length_name] = shaped.pop("max_tokens")
        if not self._takes_usage:
            shaped.pop("stream_options", None)
        if not self._takes_thoughts:
            shaped["messages"] = [_without_thoughts(message) for message in shaped["messages"]]
        if "response_format" in shaped:
            step = self._steps.get(_schema_hash(body), 0)
            if step == 1:
                shaped["response_format"] = {"type": "json_object"}
            elif step == 2:
                del shaped["response_format"]
        return shaped

    def adapts_to(self, fault: Fault, body: dict[str, Any], sent: dict[str, Any]) -> bool:
        """Whether the server refused a part of `sent` (`body`, shaped) that is omitted or renamed from now on.

        Also true if another request found that out while this one was in flight.
        """
        if fault.reason not in {"http_400", "http_422"}:
            return False
        detail = fault.detail.lower()
        # vLLM names both when a prompt is too long.
        refused = "unsupported" in detail or "not supported" in detail
        if "max_tokens" in sent and "max_completion_tokens" in detail and refused:
            self._length_name = "max_completion_tokens"
            return True
        if "stream_options" in sent and "stream_options" in detail:
            self._takes_usage = False
            return True
        if _THOUGHTS in detail and any(_THOUGHTS in message for message in sent.get("messages", ())):
            if self._takes_thoughts:
                LOGGER.warning("the server refuses %s: the thoughts of earlier turns are not sent to it", _THOUGHTS)
            self._takes_thoughts = False
            return True
        if "response_format" in sent and any(word in detail for word in _FORMAT_WORDS):
            known = _schema_hash(body)
            failed = 1 if sent["response_format"]["type"] == "json_object" else 0
            self._steps[known] = max(self._steps.get(known, 0), failed + 1)
            return True
        return False


def json_schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """`response_format` for answers that follow a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _without_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != _THOUGHTS}


def _schema_hash(body: dict[str, Any]) -> str:
    return content_hash(body["response_format"])
