"""What the doctor says: findings, one a line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    section: str
    """`installed`, `machine`, `measured` or `expect`."""
    name: str
    state: str
    good: bool = True
    """False for what a user may want to change."""
    values: dict[str, Any] = field(default_factory=dict)
    """Figures of the state, for `--json`."""
    failed: bool = False
    """Whether runs on this machine cannot be trusted."""
