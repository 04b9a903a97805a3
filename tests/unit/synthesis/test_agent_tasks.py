"""Tasks for agents, driven by scripted replies: what becomes a row that `agent_trajectories` plays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easydistill.contracts.operator import Ask, Reply, Result, answer_with
from easydistill.data.records import Sample
from easydistill.synthesis.operators import agent_tasks as operator
from easydistill.synthesis.operators.agent_trajectories.configs import Config as TrajectoriesConfig
from easydistill.synthesis.operators.agent_trajectories.tasks import task_of
from easydistill.synthesis.tools import Tools

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def situation(**meta: Any) -> Sample:
    said = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Somebody is lost."})
    return Sample("s", said, meta, tools=(TOOL,))  # type: ignore[arg-type]


def drive(rows: Sequence[Sample], replies: Sequence[str], **config: Any) -> tuple[Result, list[Ask]]:
    settings, asked = operator.Config(**config), list[Ask]()

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        asked.extend(asks)
        first = len(asked) - len(asks)
        return [Reply(replies[first + at], finish_reason="stop", key="k") for at in range(len(asks))]

    return answer_with(operator.run(settings, rows, Tools(settings, operator)), answer), asked


def task(goal: str, environment: str = '{"places": ["station"]}') -> str:
    return f"<goal>{goal}</goal><environment>{environment}</environment><message>Help!</message>"


def test_tasks_can_be_played() -> None:
    replies = [task("You want to find the station."), task("You want a bed for tonight, under 50.")]
    result, asked = drive([situation(goal="old", topic="x")], replies, tasks=2)
    first, second = result.accepted
    assert (first.id, second.id) == ("s-1", "s-2") and not result.rejected
    assert [message["content"] for message in first.messages] == ["Be kind.", "Help!"]
    assert first.meta == {
        "topic": "x",
        "goal": "You want to find the station.",
        "environment": {"places": ["station"]},
        "operator": "agent_tasks",
        "source": "s",
        "original": "Somebody is lost.",
    }
    # The second is asked for with the first in view.
    assert "find the station" in str(asked[1].messages[-1]["content"])
    played = task_of(TrajectoriesConfig(), first, ())
    assert played.goal == first.meta["goal"] and played.environment == {"places": ["station"]}
    assert list(played.checks.tools) == ["find"]


def test_what_is_no_task_says_why(tmp_path: Path) -> None:
    replies = [
        "nothing",
        task("You want A.", "{oops"),
        task("You want B.", "[1]"),
        task("You want C."),
        task("you want c"),
    ]
    result, _ = drive([situation()], replies, tasks=5)
    assert [kept.id for kept in result.accepted] == ["s-4"]
    assert [item.reason for item in result.rejected] == [
        *("malformed_reply", "environment_not_json", "environment_not_json", "too_similar")
    ]
    assert {item.reason for item in result.rejected} <= set(operator.REASONS)
    bare = Sample("b", situation().messages, {})
    result, asked = drive([bare], [])
    assert [item.reason for item in result.rejected] == ["no_tools"] and not asked
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    result, _ = drive([bare], [task("You want A.")], tasks=1, definitions=str(tmp_path / "tools.json"))
    assert result.accepted[0].tools == (TOOL,)
