"""Why a stage runs, or that what it left is kept: in the same words when `plan` is asked and when `run` begins.

A finished stage's manifest holds the values that its fingerprint hashes, so what changed since is named, with the value
before and now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.images.sources import changed_sources
from easydistill.data.manifest import Manifest

KEPT, RUNS = "kept", "runs"
_SHOWN = 5
"""Most changes that are named."""
_LONGEST = 40
"""Characters of a value that is shown; longer ones, such as hashes, are only said to have changed."""
_ABSENT = object()


@dataclass(frozen=True)
class Standing:
    """What becomes of a stage."""

    state: str
    """`kept` or `runs`."""
    why: str = ""
    """Why it runs although something of it is there; empty if it runs for the first time, or is kept."""

    @property
    def words(self) -> str:
        return f"{self.state}: {self.why}" if self.why else self.state


def why_again(directory: Path, now: Mapping[str, Any]) -> str:
    """Why a stage that has left something in `directory` is not complete; empty if it has not run to its end.

    Args:
        now: the values that its fingerprint hashes now.
    """
    old = Manifest.read(directory)
    if old is None:
        return ""
    changed = list(changes(old.fingerprint_of, now))
    if not changed:
        return "its images changed" if changed_sources(directory) else "its files are gone"
    more = len(changed) - _SHOWN
    return ", ".join(changed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def waiting(directory: Path, rerun: Sequence[str]) -> Standing:
    """A stage whose inputs are made anew by stages before it."""
    begun = directory.is_dir() and any(directory.iterdir())
    verb = "runs again" if len(rerun) == 1 else "run again"
    return Standing(RUNS, f"{' and '.join(rerun)} {verb}" if begun and rerun else "")


def changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Each difference between two JSON values in words: `training.learning_rate changed from 1e-05 to 3e-05`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else key
            yield from changes(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        name = _named(path)
        before, after = _value(old), _value(new)
        yield f"{name} changed" + (f" from {before} to {after}" if before and after else "")


def _named(path: str) -> str:
    """A key as the config has it: without the stage's own name for the config, and a pipeline's for its stages."""
    path = path.removeprefix("config.")
    if path.startswith("stages."):
        stage, _, key = path.removeprefix("stages.").partition(".")
        return f"{stage}: {key}" if key else stage
    return path


def _value(value: Any) -> str:
    """A short value as JSON; empty if it is too long to be shown."""
    if value is _ABSENT:
        # Identities leave out what has its default.
        return "its default"
    if isinstance(value, Mapping | list):
        return ""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _LONGEST else ""
