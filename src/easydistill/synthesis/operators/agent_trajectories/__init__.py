"""Agent trajectories: chats in which the teacher calls tools for a user, played to the end, checked and judged.

    teacher   the assistant; its calls are checked against the tools' JSON schemas
    tools     answers them: a model, functions in the sandbox, or recorded results (`results`)
    user      a model that wants to reach the row's goal, and says when it has (`playing`)
    judge     scores the whole chat for each criterion of a rubric (`grading`)

A row is a task: an instruction with `tools`, and optionally a `goal` that the assistant is not shown, an `environment`
that only the tools know, and a `rubric` of its own. An accepted row holds the whole chat. Each chat is played by
itself, and all of them side by side: a wave of questions has the next one of every chat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from easydistill.contracts.operator import Result, Steps, each
from easydistill.data.messages import Message
from easydistill.data.records import Rejection, Sample, marked
from easydistill.synthesis.operators.agent_trajectories.configs import Config, FunctionTools, RecordedTools
from easydistill.synthesis.operators.agent_trajectories.grading import criteria_for, grade
from easydistill.synthesis.operators.agent_trajectories.playing import Play
from easydistill.synthesis.operators.agent_trajectories.results import tool_answers
from easydistill.synthesis.operators.agent_trajectories.tasks import Task, read_definitions, task_of
from easydistill.synthesis.replies import Unusable
from easydistill.synthesis.tool_functions import PROBLEMS
from easydistill.synthesis.tools import Tools

__all__ = ["Config", "run"]

STAGE = "agent_trajectories"
SUMMARY = "Chats in which the teacher calls tools for a mock user, checked and judged."
PROMPTS = ("mock_user", "mock_tool", "rubric", "rubric_scores")
REASONS = (
    *("no_tools", "bad_tools", "no_function", "bad_task", "truncated", "malformed_call", "malformed_reply"),
    *("invalid_call", *PROBLEMS, "not_recorded", "too_many_calls", "user_gave_up", "unfinished", "few_calls"),
    *("malformed_score", "low_scores", "not_best"),
)
LABELLED = False
REFUSES_IMAGES = (
    "agent_trajectories plays chats of text alone, and neither mock user nor judge would see it: remove the row, or "
    "describe in words what its image shows"
)


@dataclass(frozen=True)
class _Kept:
    """A chat that passed."""

    play: Play
    scores: Mapping[str, int]

    @property
    def mean(self) -> float:
        return fmean(self.scores.values())


def files(config: Config) -> dict[str, str]:
    """The files that the config names, by key."""
    named = {"definitions": config.definitions}
    if isinstance(config.tools, FunctionTools):
        named["tools.file"] = config.tools.file
    if isinstance(config.tools, RecordedTools):
        named["tools.path"] = config.tools.path
    return {key: path for key, path in named.items() if path is not None}


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Play each row's task. `meta` has `user_messages`, `calls`, `invalid_calls`, and the judge's `rubric_scores`."""
    answers = tool_answers(config, tools)
    definitions = read_definitions(config.definitions)
    result = Result()
    plays: list[Play] = []

    def prepare(row: Sample) -> Steps[tuple[Task, Mapping[str, str]] | Rejection]:
        try:
            task = task_of(config, row, definitions)
            answers.check(task)
            if config.rubric is None:
                return task, {}
            return task, (yield from criteria_for(config, config.rubric, tools, task))
        except Unusable as problem:
            return _rejection(row.id, problem, row.messages)

    def play(item: tuple[Task, Mapping[str, str], int]) -> Steps[_Kept | Rejection]:
        task, criteria, number = item
        played = Play(config, tools, answers, task, number)
        plays.append(played)
        try:
            yield from played.run()
            scores: Mapping[str, int] = {}
            if config.rubric is not None:
                scores = yield from grade(config, config.rubric, tools, played, criteria)
        except Unusable as problem:
            return _rejection(_name(config, played), problem, played.messages, played)
        return _Kept(played, scores)

    prepared = yield from each(rows, prepare)
    tasks = [item for item in prepared if not isinstance(item, Rejection)]
    attempts = [(*item, number) for item in tasks for number in range(config.samples)]
    found = yield from each(attempts, play)
    result.rejected.extend([item for item in prepared if isinstance(item, Rejection)])
    result.rejected.extend([item for item in found if isinstance(item, Rejection)])
    kept, others = _best([item for item in found if isinstance(item, _Kept)], config)
    result.rejected.extend(others)
    result.accepted.extend([_row(config, item) for item in kept])
    result.entered = len(result.accepted) + len(result.rejected)
    result.facts = _facts(config, len(rows), plays, kept)
    return result


def _best(found: Sequence[_Kept], config: Config) -> tuple[list[_Kept], list[Rejection]]:
    """The chats to keep, and the others."""
    if config.keep == "all":
        return list(found), []
    best: dict[str, _Kept] = {}
    for item in found:
        known = best.setdefault(item.play.task.row.id, item)
        if item.mean > known.mean:
            best[item.play.task.row.id] = item
    kept = [item for item in found if best[item.play.task.row.id] is item]
    others: list[Rejection] = []
    for item in found:
        first = best[item.play.task.row.id]
        if first is not item:
            problem = Unusable("not_best", f"mean {item.mean:.2f}, another chat of the task has {first.mean:.2f}")
            others.append(_rejection(_name(config, item.play), problem, item.play.messages))
    return kept, others


def _name(config: Config, play: Play) -> str:
    identity = play.task.row.id
    return identity if config.samples == 1 else f"{identity}-{play.number + 1}"


def _row(config: Config, kept: _Kept) -> Sample:
    play = kept.play
    meta = {
        **play.task.row.meta,
        "operator": STAGE,
        "source": play.task.row.id,
        "user_messages": play.turns,
        "calls": len(play.calls),
        "invalid_calls": play.invalid,
    }
    if kept.scores:
        meta |= {"rubric_scores": dict(kept.scores), "rubric_mean": round(kept.mean, 4)}
    row = replace(play.task.row, id=_name(config, play), messages=tuple(play.messages), meta=meta)
    return marked(row, cut=False)


def _rejection(identity: str, problem: Unusable, messages: Sequence[Message], play: Play | None = None) -> Rejection:
    """A rejection with the chat as far as it got."""
    last = () if play is None or play.last is None else (play.last,)
    replies = problem.replies or last
    raw: dict[str, Any] = {"messages": list(messages)}
    if replies:
        raw["reply"] = replies[-1].raw if replies[-1].raw is not None else replies[-1].text
    keys = tuple(reply.key for reply in replies if reply.key is not None)
    return Rejection(identity, STAGE, problem.reason, problem.detail, 1, raw, keys)


# --- figures ------------------------------------------------------------------------------------------------------


def _facts(config: Config, tasks: int, plays: Sequence[Play], kept: Sequence[_Kept]) -> dict[str, Any]:
    chats = [item.play for item in kept]
    called = Counter(answered.call["name"] for play in plays for answered in play.calls)
    failed = Counter(answered.call["name"] for play in plays for answered in play.calls if answered.failed)
    facts: dict[str, Any] = {
        "tasks": tasks,
        "tasks_with_a_chat": len({play.task.row.id for play in chats}),
        "chats_played": len(plays),
        "invalid_calls": sum(play.invalid for play in plays),
        "a_kept_chat_has": {
            "messages of the user": _mean(chats, lambda play: play.turns),
            "calls": _mean(chats, lambda play: len(play.calls)),
            "messages that are not learned": _mean(chats, _unlearned),
        },
        "calls": {name: {"answered": count, "with an error": failed[name]} for name, count in sorted(called.items())},
    }
    if config.rubric is not None and kept:
        facts["scores"] = _distribution([item.scores for item in kept])
    return facts


def _unlearned(play: Play) -> int:
    return sum(message.get("weight") == 0 for message in play.messages)


def _mean(plays: Sequence[Play], of: Callable[[Play], int]) -> float | None:
    return round(fmean(map(of, plays)), 2) if plays else None


def _distribution(scores: Sequence[Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """How often each score was given, by criterion."""
    names = list(dict.fromkeys(name for found in scores for name in found))
    counts = {name: Counter(found[name] for found in scores if name in found) for name in names}
    return {name: {str(score): count for score, count in sorted(found.items())} for name, found in counts.items()}
