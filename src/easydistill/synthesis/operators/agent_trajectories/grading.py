"""The rubric: criteria that are given or written for a task, and a judge's score of a chat for each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from statistics import fmean

from easydistill.contracts.operator import Steps
from easydistill.synthesis.operators.agent_trajectories.calls import function_of
from easydistill.synthesis.operators.agent_trajectories.configs import SCORES, Config, RubricConfig
from easydistill.synthesis.operators.agent_trajectories.playing import Play, transcript
from easydistill.synthesis.operators.agent_trajectories.tasks import Task, numbered
from easydistill.synthesis.replies import Unusable, field_of, scores_of
from easydistill.synthesis.tools import Tools

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)、])\s*")


def criteria_for(config: Config, rubric: RubricConfig, tools: Tools, task: Task) -> Steps[Mapping[str, str]]:
    """The criteria of a task: its own, those that the judge writes for it, or the config's.

    Raises:
        Unusable: the judge's reply holds none.
    """
    if task.criteria or not rubric.generated:
        return task.criteria or rubric.criteria
    (reply,) = yield [
        tools.ask(
            "rubric",
            task.goal,
            wants=("criteria",),
            role="judge",
            goal=task.goal,
            tools=_described(task),
            count=rubric.generated,
        )
    ]
    lines = field_of(reply, "criteria", config.reply).splitlines()
    texts = [text for line in lines if (text := _BULLET.sub("", line).strip())]
    if len(texts) != rubric.generated:
        detail = f"{len(texts)} criteria instead of {rubric.generated}, one a line"
        raise Unusable("malformed_reply", detail, reply)
    return numbered(texts)


def grade(
    config: Config, rubric: RubricConfig, tools: Tools, play: Play, criteria: Mapping[str, str]
) -> Steps[dict[str, int]]:
    """The judge's score of a chat for each criterion.

    Raises:
        Unusable: there are none, or they are too low.
    """
    wants = dict.fromkeys(criteria, SCORES)
    (reply,) = yield [
        tools.ask(
            "rubric_scores",
            play.task.goal,
            wants=wants,
            role="judge",
            index=play.number,
            goal=play.task.goal,
            tools=_described(play.task),
            chat=transcript(play.messages),
            criteria=criteria,
        )
    ]
    play.last = reply
    scores = scores_of(reply, wants, config.reply)
    mean = fmean(scores.values())
    low = [name for name, score in scores.items() if score < rubric.min_score]
    if low or mean < rubric.min_mean:
        told = ", ".join(f"{name} {score}" for name, score in scores.items())
        raise Unusable("low_scores", f"{told}; mean {mean:.2f}", reply)
    return scores


def _described(task: Task) -> str:
    return "\n".join(json.dumps(function_of(tool), ensure_ascii=False) for tool in task.checks.tools.values())
