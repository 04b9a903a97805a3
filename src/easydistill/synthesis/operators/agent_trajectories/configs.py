"""Config of `agent_trajectories`: who plays user and tools, how long a chat may get, and what a judge asks of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, model_validator

from easydistill.config.base import (
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Unfit,
)
from easydistill.contracts.operator import OperatorConfig
from easydistill.data.files import hash_file

SCORES = (1, 5)
"""Smallest and largest score of a criterion."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CRITERIA = {
    "goal": "What the user wanted is done, or the user learns truthfully why it cannot be done.",
    "calls": "Every call is needed, with the right tool and right arguments; none is missing, guessed or repeated.",
    "grounded": "What the assistant says follows from what the user said and the tools returned; nothing is invented.",
    "conduct": "The assistant keeps to its instructions, asks where something is unclear, and is clear and brief.",
}


def hash_of(path: str) -> str | None:
    """The hash of a file; None where there is none, which `validate` tells."""
    try:
        return hash_file(Path(path))
    except OSError:
        return None


class SimulatedTools(Section):
    """A model plays the tools, consistently with their descriptions and with what they returned before."""

    kind: Literal["simulated"] = "simulated"
    """A model plays the tools."""


class FunctionTools(Section):
    """Functions of a Python file of yours, run in the sandbox with the standard library alone.

    For each call a new process runs the file, `setup(environment)` if the file has it and the row an `environment`, and
    the earlier calls of the chat, so that what they changed is still changed; then the call itself.
    """

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    kind: Literal["functions"]
    """Functions of a file."""
    file: NonEmptyStr
    """A Python file with a function for each tool, of the same name and with the same arguments. What it returns is the
    result, what it raises is told to the assistant."""
    replay: bool = True
    """Run the earlier calls of the chat first, and reject a chat in which one gives another result than before. Turn it
    off for functions that remember nothing."""
    seconds: PositiveFloat = 10.0
    """Maximum time of a process, both wall-clock and processor time."""
    workers: PositiveInt = 2
    """Processes that run at the same time."""


class RecordedTools(Section):
    """Results that were recorded; a call that is not among them rejects the chat."""

    kind: Literal["recorded"]
    """Results from a file."""
    path: NonEmptyStr
    """JSONL of `{"name": …, "arguments": {…}, "result": …}`."""


ToolResults = Annotated[SimulatedTools | FunctionTools | RecordedTools, Discriminator("kind")]


class RubricConfig(Section):
    """What a judge scores a chat for, each from 1 to 5. Criteria in a row's field `rubric` take the place of these."""

    criteria: Annotated[dict[str, NonEmptyStr], Field(min_length=1)] = _CRITERIA
    """Criteria by name."""
    generated: NonNegativeInt = 0
    """Have the judge write this many criteria for each task, before it is played, in place of `criteria`."""
    min_score: Annotated[PositiveInt, Field(le=SCORES[1])] = 3
    """Lowest score that each criterion needs."""
    min_mean: Annotated[NonNegativeFloat, Field(le=SCORES[1])] = 4.0
    """Lowest mean of the scores."""

    @model_validator(mode="after")
    def _names_fit(self) -> RubricConfig:
        if wrong := next((name for name in self.criteria if not _NAME.fullmatch(name)), None):
            raise Unfit(f"{wrong!r} is no name of a criterion", "use lower-case letters, digits and underscores")
        if self.generated and "criteria" in self.model_fields_set:
            raise Unfit("criteria are both given and generated", "remove one of the two")
        return self


class Config(OperatorConfig):
    """How chats are played, and which are kept."""

    identity_name = "operator.agent_trajectories"

    tools: ToolResults = Field(default=SimulatedTools())
    """What answers calls: `{"kind": "simulated"}`, `{"kind": "functions", "file": "my_tools.py"}` or
    `{"kind": "recorded", "path": "results.jsonl"}`."""
    definitions: NonEmptyStr | None = None
    """JSON file with a list of tools, for rows that bring none."""
    mock_user: bool = True
    """Have a model play the user, until it is satisfied. If off, a chat ends with the first answer without a call."""
    user_opens: bool = False
    """The row's prompt is what the user wants to reach. The assistant is not shown it: the user says it in its own
    words, bit by bit."""
    max_turns: PositiveInt = 8
    """Most messages of the user in a chat; one that needs more is rejected."""
    max_calls: PositiveInt = 24
    """Most calls in a chat; one that needs more is rejected."""
    min_calls: NonNegativeInt = 1
    """Fewest calls in a chat."""
    invalid_calls: Literal["tell", "reject"] = "tell"
    """What to do with a call of an unknown tool, or with arguments that do not fit the tool's schema: tell the
    assistant, which may then call again, or reject the chat. The message with such a call stays in the chat with
    `weight` 0: the student reads it and does not learn to write it."""
    max_invalid_calls: PositiveInt = 2
    """Most of such calls in a chat, where they are told."""
    samples: PositiveInt = 1
    """Chats played for each task."""
    keep: Literal["all", "best"] = "all"
    """Keep all good chats of a task, or the one with the best mean score; the first, if several have it."""
    rubric: RubricConfig | None = RubricConfig()
    """What a judge scores chats for; null keeps them unjudged."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.user_opens and not self.mock_user:
            raise Unfit("nobody can open the chat without mock_user", "set mock_user to true, or user_opens to false")
        if self.keep == "best" and (self.rubric is None or self.samples == 1):
            raise Unfit('keep "best" needs several samples and a rubric', 'raise samples, or set keep to "all"')
        if self.reply == "plain" and self.mock_user:
            raise Unfit("a mock user says two things, which a plain reply cannot hold", 'use reply "tags" or "json"')
        if self.invalid_calls == "reject" and "max_invalid_calls" in self.model_fields_set:
            raise Unfit("max_invalid_calls has no effect: the first invalid call rejects the chat", "remove it")
        if not self.mock_user and "max_turns" in self.model_fields_set:
            raise Unfit("max_turns has no effect without mock_user", "remove it")
        return self

    @property
    def roles(self) -> frozenset[str]:
        """The models that are asked beside the teacher."""
        asked = {
            "user": self.mock_user,
            "tools": not isinstance(self.tools, RecordedTools),
            "judge": self.rubric is not None,
        }
        return frozenset(role for role, needed in asked.items() if needed)

    def identity(self) -> dict[str, Any]:
        """Depends on the contents of the files, not on their places."""
        found = super().identity()
        if self.definitions is not None:
            found["definitions"] = hash_of(self.definitions)
        if isinstance(self.tools, FunctionTools):
            found["tools"] |= {"file": hash_of(self.tools.file)}
        elif isinstance(self.tools, RecordedTools):
            found["tools"] |= {"path": hash_of(self.tools.path)}
        return found
