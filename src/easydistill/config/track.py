"""The `track` section: where a run's figures are shown besides its own files. Its keys are the names of sinks."""

from __future__ import annotations

from typing import Any

from easydistill.config.extensions import NamedSections, section_of
from easydistill.config.sink import SINKS, SinkConfig


class TrackSection(NamedSections):
    """Sinks of the run's figures, by name. A list of names is read too: `["tensorboard", {"wandb": {…}}]`."""


Track: Any = section_of(SINKS, TrackSection, SinkConfig, "Track", __name__)
"""`TrackSection` with a key for every registered sink."""


def or_list(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of the field take a list too."""
    schema["anyOf"].insert(1, {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}})
