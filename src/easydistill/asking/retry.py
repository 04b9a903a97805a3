"""`easydistill retry`: find the requests behind rejected rows, and make finished stages send these and no others.

Answers stay in the journal; a passing failure that is appended after one marks its request as open again. These marks
are written first, then manifests are removed, then `rejected.jsonl` is set aside. After a kill between two of these
steps the stage is either still complete or incomplete, and the same command marks the same requests.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.asking.answers import ASKED_AGAIN, JOURNAL, KEPT
from easydistill.contracts.teacher import MALFORMED_CALL, Failure
from easydistill.data.files import read_jsonl, set_aside
from easydistill.data.journal import Journal
from easydistill.data.manifest import NAME as MANIFEST
from easydistill.engine.stage import REJECTED
from easydistill.errors import ConfigError, ConfigIssue

GROUPS = {"parse": ("malformed_reply", "malformed_score", MALFORMED_CALL)}
"""Names for several reasons at once: `parse` covers replies in which an operator did not find what it asked for, and
answers whose calls cannot be read."""
NO_TEXT = ("empty_content", "null_content")
KNOWN = (
    *("rate_limit", "timeout", "connection", "stream_dropped", "server_error", "garbage"),
    "worker_died",
    *("batch_expired", "batch_cancelled", "batch_failed", "batch_completed"),
    *("content_filter", *NO_TEXT, "truncated", "prompt_too_long", "template_refused"),
    *GROUPS["parse"],
)
"""Reasons of any stage that asks a model; operators add their own."""


@dataclass
class _FailedRequests:
    """The failed requests and rejected rows of one stage."""

    directory: Path
    requests: dict[str, set[str]] = field(default_factory=dict)
    """Reason → keys of the requests that were rejected for it."""
    passing: set[str] = field(default_factory=set)
    """Requests whose failure may have passed by now."""
    without: Counter[str] = field(default_factory=Counter)
    """Reasons of rows that were rejected without a request."""

    def add(self, reason: str, keys: Sequence[str]) -> None:
        if keys:
            self.requests.setdefault(reason, set()).update(keys)
        else:
            self.without[reason] += 1

    def chosen(self, only: frozenset[str]) -> dict[str, str]:
        """Request → reason, for the requests to repeat."""
        found: dict[str, str] = {}
        for reason, keys in self.requests.items():
            if only:
                wanted = keys if reason in only else set()
            else:
                wanted = keys if reason in {*NO_TEXT, *GROUPS["parse"]} else keys & self.passing
            found |= dict.fromkeys(sorted(wanted), reason)
        return found


def mark_rejected(
    run: Path, only: Sequence[str], say: Callable[[str], None], of_operators: Callable[[], Collection[str]] = tuple
) -> int:
    """Mark requests of a run that failed or led to a rejected row, so that the next run sends them again.

    Args:
        run: the run directory; no other process may be working in it.
        only: reasons or names of `GROUPS`; by default those for which another attempt may help.
        of_operators: returns the reasons that operators add; called only for a name that is unknown otherwise.

    Returns the number of marked requests.

    Raises:
        ConfigError: a reason in `only` does not exist.
    """
    stages = [_read(path.parent) for path in sorted((run / "stages").rglob(JOURNAL))]
    found: Counter[str] = Counter()
    for stage in stages:
        found.update({reason: len(keys) for reason, keys in stage.requests.items()} | stage.without)
    wanted = _reasons(only, found, of_operators)
    marked: Counter[str] = Counter()
    for stage in stages:
        chosen = stage.chosen(wanted)
        if chosen:
            _mark(stage, chosen)
            _reopen(stage.directory, run)
            marked.update(chosen.values())
    asked = ", ".join(f"{reason} ×{count}" for reason, count in marked.most_common())
    say(f"asking again: {asked}" if marked else f"nothing to ask again; rejected here: {_listed(found)}")
    silent = sorted(reason for reason in wanted if reason in found and not marked[reason])
    if silent:
        say(f"rows rejected as {', '.join(silent)} did not come from a model: asking again cannot change them")
    return marked.total()


def _read(directory: Path) -> _FailedRequests:
    """Read `rejected.jsonl` and the journal; a stage that never finished has the journal alone."""
    stage = _FailedRequests(directory)
    with Journal(directory / JOURNAL, note=_failure) as journal:
        for key in journal:
            failure = journal.note(key)
            if failure is not None:
                reason, passing = failure
                stage.add(reason, [key])
                stage.passing |= {key} if passing else set()
        if (directory / REJECTED).is_file():
            for row in read_jsonl(directory / REJECTED):
                stage.add(row["reason"], [key for key in row.get("requests", []) if key in journal])
    return stage


def _failure(record: dict[str, Any]) -> tuple[str, bool] | None:
    return (record["reason"], record["passing"]) if record["kind"] == "failure" else None


def _mark(stage: _FailedRequests, chosen: dict[str, str]) -> None:
    now = round(time.time(), 3)
    with Journal(stage.directory / JOURNAL) as journal:
        marks = [
            {**Failure(key, reason, ASKED_AGAIN, 0, passing=True).as_record(), "at": now}
            for key, reason in chosen.items()
        ]
        if (stage.directory / MANIFEST).is_file():
            # An incomplete stage repeats all passing failures; those that were not asked for are exempted.
            left = sorted(stage.passing - chosen.keys())
            marks += [{**journal.get(key), KEPT: True} for key in left]
        journal.append(*marks)


def _reopen(directory: Path, run: Path) -> None:
    """Make a stage incomplete, and the pipeline stage that contains it."""
    inside = directory
    while inside != run:
        (inside / MANIFEST).unlink(missing_ok=True)
        inside = inside.parent
    if (directory / REJECTED).is_file():
        set_aside(directory / REJECTED)


def _reasons(only: Sequence[str], found: Counter[str], of_operators: Callable[[], Collection[str]]) -> frozenset[str]:
    """The reasons that `only` names; raises as `mark_rejected` does."""
    names = [name.strip() for name in only if name.strip()]
    unknown = [name for name in names if not (_is_known(name, found) or name in of_operators())]
    if unknown:
        others = sorted({*KNOWN, *of_operators()} - found.keys())
        hint = f"rejected here: {_listed(found)}; parse means {' and '.join(GROUPS['parse'])}"
        hint += f"; other reasons: http_400 and the like, {', '.join(others)}"
        problem = f"there is no reason {', '.join(map(repr, unknown))}"
        raise ConfigError(ConfigIssue("command line", "--only", problem, hint))
    return frozenset(reason for name in names for reason in GROUPS.get(name, (name,)))


def _is_known(name: str, found: Counter[str]) -> bool:
    return name in found or name in {*KNOWN, *GROUPS} or bool(re.fullmatch(r"http_\d{3}", name))


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{reason} ×{count}" for reason, count in found.most_common()) or "nothing"
