"""A user's own rows, scored in one of four ways.

- `verify`: the final answer equals the row's `answer`, as in the reward `verify`.
- `choice`: the row's `choices` are shown as A, B, C …; the chosen letter is compared with `answer`, a letter, the
  choice's own text or its number from 0.
- `code`: the program passes the row's `tests`, as in the reward `code`.
- `judge`: a judge model scores the reply, as in the reward `judge`; the row's other fields may stand in its prompt.

A row's prompt is read as training rows are: its `messages`, or the text of `prompt`, `question` or `instruction`, with
`input` or `context` behind it and `system` before it. Rows with images, tools or calls are refused.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from easydistill.config.base import NonEmptyStr, Unfit
from easydistill.contracts.reward import UNJUDGED, Reward, RewardContext, Rollout
from easydistill.contracts.task import UNJUDGED as NOT_JUDGED
from easydistill.contracts.task import Problem, Reply, Score, Scorer, ScoringContext
from easydistill.data.messages import Message, have_images, text_of
from easydistill.data.reading import chat_of
from easydistill.data.reading.row import fields_of, has_chat
from easydistill.data.row_files import MalformedRow, plain_value
from easydistill.errors import ConfigIssue, DataError
from easydistill.rewards import code, verify
from easydistill.rewards import judge as judging
from easydistill.tasks._math import MathScorer, math_issues
from easydistill.tasks._programs import ProgramTask, found_program
from easydistill.tasks._rows import list_field, row_id
from easydistill.verification.answers import find_answer

_LETTERS = string.ascii_uppercase
_PROMPTS = ("prompt", "question", "instruction")
_CHOOSE = "\n\nReply with the letter of the right choice within \\boxed{}."
_ROLES = frozenset({"system", "user", "assistant"})
_LED = re.compile(r"(?:\*\*)?(?:(?:option|choice) )?\(?(?P<letter>[A-Z])(?:\)|\*\*|[.:](?!\w)|$)", re.IGNORECASE)
"""A letter at the beginning of a text, with a mark behind it."""
_NO_NUMBERS = frozenset({"nan", "inf", "-inf"})
"""Numbers of JSON files as Python reads them, which no answer equals."""


class Config(ProgramTask):
    """Your own rows, scored by `verify`, `choice`, `code` or `judge`."""

    identity_name = "task.custom"

    needs_judge: ClassVar[bool] = False

    task: Literal["custom"]
    """Which task this is."""
    score: Literal["verify", "choice", "code", "judge"]
    """How replies are scored."""
    field: NonEmptyStr | None = None
    """The row's field with the right answer, or with the tests; defaults to `answer`, and to `tests` for `code`."""
    judge: judging.Config | None = None
    """With `score: "judge"`: range, language and prompt, as in `rewards.judge`."""

    @property
    def runs_programs(self) -> bool:
        return self.score == "code"

    @property
    def scores_with_judge(self) -> bool:
        return self.score == "judge"

    @property
    def field_name(self) -> str:
        """The field that the score reads."""
        return self.field or ("tests" if self.score == "code" else "answer")

    @model_validator(mode="after")
    def _uses_its_settings(self) -> Config:
        if self.judge is not None and self.score != "judge":
            raise Unfit(f'judge is not used with score "{self.score}"', "remove it")
        if self.field is not None and self.score == "judge":
            raise Unfit("field is not used by a judge: its prompt sees all fields", "remove it")
        unused = {"allow_execution", "seconds", "workers"} & self.model_fields_set
        if self.score != "code" and unused:
            raise Unfit(f'{min(unused)} is not used with score "{self.score}"', "remove it")
        return self


def issues(config: Config) -> list[ConfigIssue]:
    return math_issues() if config.score == "verify" else []


def problem(config: Config, row: Mapping[str, Any], number: int) -> Problem:
    messages, text = prompt_of(row)
    identity, meta = row_id(row, number, "id"), dict(row)
    if config.score == "choice":
        return _choice_problem(config, row, identity, messages, text)
    if config.score == "verify":
        if wrong := verify.check(verify.Config(field=config.field_name), meta):
            raise MalformedRow(wrong)
        known = verify.known_answer(meta, config.field_name)
        if known is None or known in _NO_NUMBERS:
            raise MalformedRow(f"there is no answer in {config.field_name!r} that could be compared")
        return Problem(identity, messages, {"answer": known}, known, text)
    if config.score == "code":
        settings = code.Config(field=config.field_name, allow_execution=True)
        if not code.knows(settings, meta):
            raise MalformedRow(f"there are no tests in {config.field_name!r}")
        if wrong := code.check(settings, meta):
            raise MalformedRow(wrong)
    return Problem(identity, messages, meta, str(plain_value(row.get("answer")) or ""), text)


def prompt_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """The prompt's messages, and its last text."""
    # A number is a prompt here as it is elsewhere in `tasks`.
    texts = {name: str(row[name]) for name in _PROMPTS if type(row.get(name)) in (int, float)}
    fields = fields_of({**row, **texts})
    if not has_chat(fields):
        raise MalformedRow(
            f"there is no text in `messages` or {', '.join(map(repr, _PROMPTS))}; it has {', '.join(row)}"
        )
    chat = chat_of(fields, with_answer=False)
    messages = chat.messages
    if have_images(messages):
        raise MalformedRow("it has images, which models are not shown here: take them out, or leave out the row")
    if chat.tools or chat.template_kwargs or any(message.keys() - {"role", "content"} for message in messages):
        raise MalformedRow("it has more than messages of text: tools, calls, thoughts or a template's variables")
    if wrong := {message["role"] for message in messages} - _ROLES:
        raise MalformedRow(f"a message has the role {min(wrong)}, and none of {', '.join(sorted(_ROLES))}")
    if not messages or messages[-1]["role"] != "user":
        raise MalformedRow("the last message is not the user's, so there is nothing to reply to")
    text = text_of(messages[-1])
    if not text.strip():
        raise MalformedRow("the last message is empty, so there is nothing to reply to")
    return tuple(messages), text


def _choice_problem(
    config: Config, row: Mapping[str, Any], identity: str, messages: tuple[Message, ...], text: str
) -> Problem:
    choices = [str(choice) for choice in list_field(row, "choices", "options")]
    if not 2 <= len(choices) <= len(_LETTERS):
        raise MalformedRow(f"a problem needs 2 to {len(_LETTERS)} choices, not {len(choices)}")
    answer = row.get(config.field_name)
    right = _letter(answer, choices)
    if right is None:
        raise MalformedRow(f"{config.field_name!r} names none of the choices")
    if isinstance(answer, str) and choices.count(answer) + (_bare(answer, choices) not in (None, right)) > 1:
        number = "give the number of the right one, from 0"
        raise MalformedRow(f"{config.field_name!r} names several of the choices, by letter or text: {number}")
    shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    last: Message = {"role": "user", "content": f"{text_of(messages[-1]).rstrip()}\n\n{shown}{_CHOOSE}"}
    return Problem(identity, (*messages[:-1], last), {"right": right, "choices": choices}, right, text)


def _letter(answer: Any, choices: Sequence[str]) -> str | None:
    """The letter of the right choice."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return _LETTERS[answer] if 0 <= answer < len(choices) else None
    if not isinstance(answer, str):
        return None
    if answer in choices:
        return _LETTERS[choices.index(answer)]
    return _bare(answer, choices)


def _bare(text: str, choices: Sequence[str]) -> str | None:
    """The letter of a choice that is all of the text, but for marks around it."""
    bare = text.strip().strip("()*.:").upper()
    return bare if len(bare) == 1 and bare in _LETTERS[: len(choices)] else None


def scorer(config: Config, context: ScoringContext) -> Scorer:
    if config.score == "verify":
        return MathScorer()
    if config.score == "choice":
        return _Choices()
    if config.score == "code":
        settings = code.Config(
            field=config.field_name,
            allow_execution=config.allow_execution,
            score="all",
            seconds=config.seconds,
            workers=config.workers,
        )
        return _ByReward(code.make(settings, RewardContext()), shows=lambda reply: found_program(reply) or "")
    found = RewardContext(
        judge=context.judge,
        judge_sampling=context.judge_sampling,
        judge_system_prompt=context.judge_system_prompt,
        journal=context.directory / judge_journal(config.shown_name),
        redact=context.redact,
    )
    return _ByReward(judging.make(config.judge or judging.Config(), found))


def judge_journal(task: str) -> str:
    """The name of the file with a judge's replies about a task."""
    return f"{task}.judge.jsonl"


class _Choices:
    """The chosen letter against the right one."""

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        return [self._score(problem, reply) for problem, reply in replies]

    def _score(self, problem: Problem, reply: Reply) -> Score:
        chosen = chosen_letter(reply.text, problem.fields["choices"])
        right = chosen == problem.fields["right"]
        return Score(float(right), chosen or "", "" if right else "another choice" if chosen else "no choice")

    def close(self) -> None:
        """Nothing to release."""


def chosen_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that a reply chooses: stated as its answer, or all that it says, or all of its first line.

    A letter is that of a choice, as the prompt asks for letters, even where the text of another choice is a letter.
    """
    found = find_answer(text, ("boxed", "phrase"))
    said = found.text.strip() if found is not None else text.strip()
    return _said(said, choices) or _bare(said.partition("\n")[0], choices)


def _said(said: str, choices: Sequence[str]) -> str | None:
    if letter := _bare(said, choices):
        return letter
    if said in choices:
        return _LETTERS[choices.index(said)]
    # "B. the second choice"
    led = _LED.match(said)
    return _bare(led["letter"], choices) if led else None


class _ByReward:
    """A reward's values as scores."""

    def __init__(self, reward: Reward, shows: Any = lambda reply: "") -> None:
        self._reward, self._shows = reward, shows

    def __call__(self, replies: Sequence[tuple[Problem, Reply]]) -> list[Score]:
        rollouts = [
            Rollout(problem.messages, reply.text, (), (), not reply.cut, problem.fields) for problem, reply in replies
        ]
        values = self._reward(rollouts)
        if unanswered := values.count(None):
            problem = f"{unanswered} of {len(values)} replies could not be scored for a reason that may pass"
            raise DataError(f"{problem}\n    → run the same command again: only these are judged again")
        return [
            Score(max(0.0, value or 0.0), self._shows(reply), NOT_JUDGED if value == UNJUDGED else "")
            for (_, reply), value in zip(replies, values, strict=True)
        ]

    def close(self) -> None:
        self._reward.close()
