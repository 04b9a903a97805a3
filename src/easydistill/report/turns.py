"""The messages of a chat, as the report shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from easydistill.report.values import as_dict, as_text, shown

TURN_LIMIT = 8000
"""Characters of a message that are shown at most."""


@dataclass(frozen=True)
class Turn:
    """A message."""

    role: str
    text: str


def turns_of(value: Any) -> tuple[Turn, ...]:
    """A prompt, as its text or as a list of messages; what is neither has no turns."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return tuple(_turn(message) for message in value if isinstance(message, dict)) if isinstance(value, list) else ()


def _turn(message: dict[str, Any]) -> Turn:
    content = message.get("content")
    if isinstance(content, list):
        # Parts of a multimodal message: its text is shown, the rest is named.
        parts = (as_dict(part) for part in content)
        content = "\n".join(as_text(part.get("text")) or f"[{as_text(part.get('type')) or 'part'}]" for part in parts)
    return Turn(as_text(message.get("role")), shown(content, TURN_LIMIT))
