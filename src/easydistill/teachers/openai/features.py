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
        detail = fault.detail.lower()
        return fault.reason in {"http_400", "http_422"} and (
            self._renames_length(detail, sent)
            or self._leaves_out_usage(detail, sent)
            or self._leaves_out_thoughts(detail, sent)
            or self._asks_for_less_form(detail, body, sent)
        )

    def _renames_length(self, detail: str, sent: dict[str, Any]) -> bool:
        # vLLM names both when a prompt is too long.
        refused = "unsupported" in detail or "not supported" in detail
        if "max_tokens" not in sent or "max_completion_tokens" not in detail or not refused:
            return False
        self._length_name = "max_completion_tokens"
        return True

    def _leaves_out_usage(self, detail: str, sent: dict[str, Any]) -> bool:
        if "stream_options" not in sent or "stream_options" not in detail:
            return False
        self._takes_usage = False
        return True

    def _leaves_out_thoughts(self, detail: str, sent: dict[str, Any]) -> bool:
        if _THOUGHTS not in detail or not any(_THOUGHTS in message for message in sent.get("messages", ())):
            return False
        if self._takes_thoughts:
            LOGGER.warning("the server refuses %s: the thoughts of earlier turns are not sent to it", _THOUGHTS)
        self._takes_thoughts = False
        return True

    def _asks_for_less_form(self, detail: str, body: dict[str, Any], sent: dict[str, Any]) -> bool:
        if "response_format" not in sent or not any(word in detail for word in _FORMAT_WORDS):
            return False
        known = _schema_hash(body)
        failed = 1 if sent["response_format"]["type"] == "json_object" else 0
        self._steps[known] = max(self._steps.get(known, 0), failed + 1)
        return True


def json_schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """`response_format` for answers that follow a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _without_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != _THOUGHTS}


def _schema_hash(body: dict[str, Any]) -> str:
    return content_hash(body["response_format"])
