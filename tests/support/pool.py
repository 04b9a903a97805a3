"""Teachers in workers, as stages ask them, and the processes of these workers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from easydistill.asking.answers import JOURNAL, answer_all, journalled_outcome, worth_another_try
from easydistill.config.inference import LocalInferenceConfig
from easydistill.contracts.teacher import Completion, GenerationRequest, Outcome, TeacherPlan, request_key
from easydistill.data.journal import Journal
from easydistill.engine.interrupt import StopSignal
from easydistill.engine.progress import Reporter
from easydistill.engine.secrets import Redactor
from easydistill.engine.stage import StageContext

PROCESS, ACTOR = "easydistill.teachers.pool.process", "ray::TeacherActor"
"""What is in the command lines of workers."""


def prompts(count: int) -> list[str]:
    return [f"local question {number}: " + "word " * (number % 13) for number in range(count)]


def context_in(folder: Path) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(folder, folder, {}, "", StopSignal(), Reporter(None, quiet=True), Redactor())


def answers(
    folder: Path, plan: TeacherPlan, config: LocalInferenceConfig, asked: Sequence[str], teacher: Any = None
) -> dict[str, tuple[str | None, str | None]]:
    """Have a teacher answer prompts and journal the answers in a folder; prompt → text and finish reason.

    Args:
        teacher: one that has been made already; it is then not closed.
    """
    context = context_in(folder)
    made = teacher or plan.make(context)
    chats = {text: ({"role": "user", "content": text},) for text in asked}
    keys: dict[str, str] = {
        text: request_key(plan.identity(), config.sampling(), chat)  # type: ignore[arg-type]
        for text, chat in chats.items()
    }
    requests = [GenerationRequest(keys[text], chat) for text, chat in chats.items()]  # type: ignore[arg-type]
    try:
        with Journal(folder / JOURNAL, note=worth_another_try) as journal:
            answer_all(made, requests, journal, context, "Answering")
            found: dict[str, Outcome] = {text: journalled_outcome(journal, key) for text, key in keys.items()}
    finally:
        if teacher is None:
            made.close()
    assert_once(folder / JOURNAL, len(keys))
    return {
        text: (outcome.text, outcome.finish_reason) if isinstance(outcome, Completion) else (None, outcome.reason)
        for text, outcome in found.items()
    }


def assert_once(journal: Path, count: int) -> None:
    """Every request is in a journal, and none twice."""
    keys = [record["key"] for line in journal.read_text().splitlines() for record in json.loads(line)]
    assert len(keys) == len(set(keys)) == count


def _parents() -> dict[int, int]:
    """Process → its parent, of all processes that are running."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                found[int(folder.name)] = int(fields[1])
    return found


def below(process: int | None = None) -> list[int]:
    """The running processes that a process (by default this one) has started, at any depth."""
    parents = _parents()

    def ancestors(child: int) -> Iterator[int]:
        while child in parents:
            child = parents[child]
            yield child

    root = process or os.getpid()
    return [child for child in parents if root in ancestors(child)]


def workers_of(kind: str, process: int | None = None) -> list[int]:
    """The running workers of a kind that a process has started."""
    found = []
    for child in below(process):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if kind in command:
            found.append(child)
    return sorted(found)
