"""Tasks for `agent_trajectories`, from situations and tools: what a user wants and says first, and the tools' world.

A row is a situation ("a customer has two orders and mixes them up") with `tools`, or those of `definitions`. The
teacher writes one task after the other for it and is shown those that it has written, so that they differ. An accepted
row has the user's first message as its prompt, below the situation's own system message if it has one, and the fields
`goal` and `environment`, which `agent_trajectories` reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from easydistill.config.base import NonEmptyStr, PositiveInt, PositiveShare
from easydistill.contracts.operator import OperatorConfig, Reply, Result, Steps, each
from easydistill.data.messages import Message
from easydistill.data.records import Rejection, Sample
from easydistill.data.rouge import rouge_l
from easydistill.synthesis.operators.agent_trajectories.calls import ToolChecks, function_of
from easydistill.synthesis.operators.agent_trajectories.configs import hash_of
from easydistill.synthesis.operators.agent_trajectories.tasks import ENVIRONMENT, GOAL, RUBRIC, read_definitions
from easydistill.synthesis.replies import Unusable, fields_of, gather, rejection
from easydistill.synthesis.text import normalise, prompt_text, tokens
from easydistill.synthesis.tools import Tools

STAGE = "agent_tasks"
SUMMARY = "Tasks for agents: what a user wants of given tools, its first message, and the tools' world."
PROMPTS = ("agent_task",)
REASONS = ("no_tools", "bad_tools", "truncated", "malformed_reply", "environment_not_json", "too_similar")
LABELLED = False
MAKES_PROMPTS = True
REFUSES_IMAGES = (
    "agent_tasks writes tasks of text alone, and the model that writes them would not see it: remove the row, or "
    "describe in words what its image shows"
)
_FIELDS = (GOAL, ENVIRONMENT, "message")


class Config(OperatorConfig):
    """How many tasks, and how different."""

    identity_name = "operator.agent_tasks"

    tasks: PositiveInt = 3
    """Tasks to write for each situation."""
    definitions: NonEmptyStr | None = None
    """JSON file with a list of tools, for rows that bring none."""
    max_similarity: PositiveShare = 0.7
    """Highest ROUGE-L of a task's goal with that of an earlier one for the same situation."""

    def identity(self) -> dict[str, Any]:
        """Depends on the contents of `definitions`, not on its place."""
        found = super().identity()
        return found if self.definitions is None else found | {"definitions": hash_of(self.definitions)}


def files(config: Config) -> dict[str, str]:
    """The file that the config names, by key."""
    return {} if config.definitions is None else {"definitions": config.definitions}


def run(config: Config, rows: Sequence[Sample], tools: Tools) -> Steps[Result]:
    """Write tasks for each row. `meta["source"]` is the row's id, `meta["original"]` the situation."""
    definitions = read_definitions(config.definitions)

    def written(row: Sample) -> Steps[list[Sample | Rejection]]:
        row = row if row.tools else replace(row, tools=definitions)
        try:
            checks = ToolChecks(row.tools)
        except Unusable as problem:
            return [rejection(row.id, STAGE, problem)]
        described = "\n".join(
            json.dumps(function_of(tool), ensure_ascii=False, indent=1) for tool in checks.tools.values()
        )
        found: list[Sample | Rejection] = []
        for number in range(config.tasks):
            earlier = [item.meta[GOAL] for item in found if isinstance(item, Sample)]
            (reply,) = yield [
                tools.ask(
                    "agent_task",
                    prompt_text(row),
                    wants=_FIELDS,
                    index=number,
                    situation=prompt_text(row),
                    tools=described,
                    earlier=earlier,
                )
            ]
            found.append(_task(config, row, number, earlier, reply))
        return found

    everything = yield from each(rows, written)
    return gather(item for found in everything for item in found)


def _task(config: Config, row: Sample, number: int, earlier: Sequence[str], reply: Reply) -> Sample | Rejection:
    identity = f"{row.id}-{number + 1}"
    try:
        found = fields_of(reply, _FIELDS, config.reply)
        environment = _environment(found[ENVIRONMENT], reply)
        _check_new(config, found[GOAL], earlier, reply)
    except Unusable as problem:
        return rejection(identity, STAGE, problem, reply)
    message: Message = {"role": "user", "content": found["message"]}
    kept = {name: value for name, value in row.meta.items() if name not in (GOAL, ENVIRONMENT, RUBRIC)}
    meta = {
        **kept,
        GOAL: found[GOAL],
        ENVIRONMENT: environment,
        "operator": STAGE,
        "source": row.id,
        "original": prompt_text(row),
    }
    system = [item for item in row.prompt if item["role"] in ("system", "developer")]
    return replace(row, id=identity, messages=(*system, message), meta=meta)


def _environment(text: str, reply: Reply) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable("environment_not_json", f"{str(error)[:200]}: {text[:200]!r}", reply) from None
    if not isinstance(found, dict):
        raise Unusable("environment_not_json", f"it is a {type(found).__name__}, not an object", reply)
    return found


def _check_new(config: Config, goal: str, earlier: Sequence[str], reply: Reply) -> None:
    words = tokens(goal)
    for other in earlier:
        alike = 1.0 if normalise(other) == normalise(goal) else rouge_l(tokens(other), words)
        if alike > config.max_similarity:
            raise Unusable("too_similar", f"ROUGE-L {alike:.2f} with an earlier task: {other[:200]!r}", reply)
