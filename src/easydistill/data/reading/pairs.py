"""Rows with a better and a worse answer to one prompt → the prompt and both answers; rows with a vote (KTO) → the vote.

Read are `chosen` and `rejected` (texts, messages, lists of messages, or dialogues as in HH-RLHF) after a prompt of any
known shape, or after the messages that both begin with; a chat and a worse answer (`rejected_response`); what
`verdicts.py` reads; and any of these in an object `text`. The images of a row belong to the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easydistill.config.base import BETAS
from easydistill.data.messages import Message, Tool, as_context, have_images, is_learned, says_something, text_of
from easydistill.data.numbers import as_float
from easydistill.data.reading import keys
from easydistill.data.reading.checks import refuse_lone_surrogates, vote_of
from easydistill.data.reading.columns import under_known_names
from easydistill.data.reading.media import IMAGE_PLACE, place_images, refuse_tags_of_answers
from easydistill.data.reading.prompts import dialogue
from easydistill.data.reading.row import RowChat, chat_of, chats_of, drop_fillers, fields_of, has_chat, whole
from easydistill.data.reading.turns import Turns, turns_of
from easydistill.data.reading.values import as_object, as_turns, is_given, names_of
from easydistill.data.reading.verdicts import Judged, Tie, judged
from easydistill.data.records import CUT, FINISH_REASON, cut_marks
from easydistill.data.row_files import BrokenRow, MalformedRow

SIDES = ("chosen", "rejected")
_NAMES = (
    *(("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_messages", "rejected_messages")),
    *(("preferred_output", "non_preferred_output"), ("response_j", "response_k")),
)
_WORSE = ("rejected_response", "rejected_messages", "rejected_conversations", "rejected")
_OWN_IMAGES = tuple(f"{side}_{name}" for side in SIDES for name in ("image", "images", "image_path"))
"""Columns with images of one answer alone."""
_KNOWN = ("generations", "responses", "completions", "beta", *keys.PAIRED, *keys.CHATS)
"""Fields that are not missed in a pair: other answers, and the chat of one of the two."""


@dataclass
class PairChat:
    """A prompt with a better and a worse answer."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: tuple[Tool, ...] = ()
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    beta: float | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


@dataclass
class Vote:
    """An answer of which the row says whether it is good."""

    chat: RowChat
    good: bool


def pair_of(row: Any, *, columns: Mapping[str, str] | None = None) -> PairChat | Vote | Tie:
    """The pair of a row.

    Raises:
        MalformedRow: it holds none, or cannot be read whole.
    """
    if not isinstance(row, dict) or isinstance(row, BrokenRow):
        # Raises the more exact error.
        chat_of(row)
        raise MalformedRow("there is no `chosen` and `rejected`")
    row = _unwrapped(fields_of(row))
    if columns:
        row, _ = under_known_names(row, columns)
    _refuse_own_images(row)
    found = _sides(row)
    if isinstance(found, Tie):
        return found
    if found is not None:
        return _pair(row, found)
    worse = next((name for name in _WORSE if is_given(row.get(name))), None)
    return _vote(row) if worse is None else _beside_a_chat(row, worse)


def _unwrapped(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with the fields of a pair that stand in an object or the JSON text of one (`text`, in RLHF-V)."""
    inner = None if any(name in row for name in SIDES) else as_object(row.get("text"))
    if inner is None or not set(SIDES) <= inner.keys():
        return row
    return {**{name: value for name, value in row.items() if name != "text"}, **inner}


def _refuse_own_images(row: dict[str, Any]) -> None:
    name = next((name for name in _OWN_IMAGES if is_given(row.get(name))), None)
    if name is not None:
        raise MalformedRow(
            f"the row has `{name}`: both answers of a pair are to the same images, in `images`; remove the column if "
            "they are, or the row",
            IMAGE_PLACE,
        )


def _vote(row: dict[str, Any]) -> Vote:
    votes = (vote_of(row, name) for name in keys.LABELS if row.get(name) is not None)
    label = next((vote for vote in votes if vote is not None), None)
    if label is None:
        chat_of(row)
        raise MalformedRow(
            f"there is no `chosen` and `rejected` (it has: {names_of(row)}); if other columns hold them, name these: "
            'dataset.columns: {"chosen": …, "rejected": …}'
        )
    (chat,) = chats_of({name: value for name, value in row.items() if name not in keys.LABELS}, labelled=None)[:1]
    if chat.messages[-1]["role"] != "assistant" or not says_something(chat.messages[-1]):
        raise MalformedRow("the row has a label, but no answer")
    return Vote(chat, label)


def _sides(row: dict[str, Any]) -> Judged | Tie | None:
    for names in _NAMES:
        if all(row.get(name) is not None for name in names) and not isinstance(row[names[0]], int):
            chosen, thoughts = _with_thoughts(row, names[0])
            rejected, others = _with_thoughts(row, names[1])
            return Judged(chosen, rejected, frozenset((*names, *thoughts, *others)), {})
    return judged(row)


def _with_thoughts(row: dict[str, Any], name: str) -> tuple[Any, list[str]]:
    """An answer with the thoughts in the column beside it (`chosen_reasoning`), and that column."""
    for thoughts in keys.THOUGHTS:
        column = f"{name}_{thoughts}"
        if isinstance(row[name], str) and isinstance(row.get(column), str) and row[column]:
            return {"role": "assistant", "content": row[name], "reasoning_content": row[column]}, [column]
    return row[name], []


def _pair(row: dict[str, Any], found: Judged) -> PairChat:
    rest = {name: value for name, value in row.items() if name not in found.used}
    chosen, rejected = (side_messages(value, name) for value, name in zip(_values(found), SIDES, strict=True))
    for side in (chosen, rejected):
        if _repeats_prompt(side):
            place_images(rest, side)
    asked = _asked(rest)
    prompt, chosen, rejected = _split(None if asked is None else asked.messages, chosen, rejected)
    if asked is None or prompt != asked.messages:
        asked = whole(rest, Turns(prompt), set())
    return _made(rest, asked, chosen, rejected, found.meta)


def _values(found: Judged) -> tuple[Any, Any]:
    return found.chosen, found.rejected


def _beside_a_chat(row: dict[str, Any], name: str) -> PairChat:
    """The pair of a chat that ends with the better answer and has a worse one beside it (ms-swift)."""
    rest = {key: value for key, value in row.items() if key != name}
    chat = chat_of(rest)
    start = _answer_start(chat.messages)
    if start == len(chat.messages):
        raise MalformedRow(f"there is `{name}`, and no better answer: `chosen`, or one at the end of `messages`")
    worse = side_messages(row[name], name)
    if _repeats_prompt(worse):
        place_images(rest, worse)
    prompt, chosen, rejected = _split(chat.messages[:start], chat.messages[start:], worse)
    chat.messages = prompt
    # The row's own mark is that of the chat's answer.
    cut = chat.rest.pop(FINISH_REASON, None) == CUT
    return _made(rest, chat, chosen, rejected, cut_marks(chosen=cut))


def _answer_start(messages: list[Message]) -> int:
    """Where the assistant's messages at the end of a chat begin."""
    start = len(messages)
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    return start


def _made(
    row: dict[str, Any],
    asked: RowChat,
    chosen: list[Message],
    rejected: list[Message],
    meta: dict[str, Any],
) -> PairChat:
    prompt = list(as_context(asked.messages))
    for name, side in zip(SIDES, (chosen, rejected), strict=True):
        _check_answer(side, name)
        drop_fillers(side, asked.tools)
        refuse_tags_of_answers(prompt, side)
    refuse_lone_surrogates([*prompt, *chosen, *rejected], (asked.tools, asked.template_kwargs))
    if not any(message["role"] == "user" and says_something(message) for message in prompt):
        raise MalformedRow("there is no prompt")
    if not says_something(chosen[-1]) or not says_something(rejected[-1]):
        raise MalformedRow("an answer is empty: there is neither text nor a tool call")
    if chosen == rejected:
        raise MalformedRow("both answers are the same")
    rest = {name: value for name, value in asked.rest.items() if name not in ("beta", *SIDES)} | meta
    unread = frozenset(asked.unread - {*_KNOWN, *keys.ANSWERS})
    return PairChat(prompt, chosen, rejected, asked.tools, asked.template_kwargs, _beta(row.get("beta")), rest, unread)


def _check_answer(side: list[Message], name: str) -> None:
    if not side or side[-1]["role"] != "assistant":
        raise MalformedRow(f"`{name}` does not end with the assistant's message")
    if not is_learned(side[-1]):
        raise MalformedRow(f"the answer in `{name}` is marked as one that is not learned (weight 0)")


def side_messages(value: Any, name: str) -> list[Message]:
    """The messages of one side: the answer alone, or after its prompt."""
    if isinstance(value, str) and not as_turns(value):
        spoken = dialogue(value)
        return spoken if spoken is not None else [{"role": "assistant", "content": value}]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and not as_turns(value):
        if len(value) == 1:
            return side_messages(value[0], name)
        raise MalformedRow(f"`{name}` holds {len(value)} answers, and a pair has one on each side: make a row for each")
    try:
        return turns_of([value] if isinstance(value, dict) else value, "messages").messages
    except MalformedRow as problem:
        raise MalformedRow(f"`{name}`: {problem}", problem.reason) from None


# --- the prompt -------------------------------------------------------------------------------------------


def _asked(row: dict[str, Any]) -> RowChat | None:
    """The chat before both answers; None if only the sides contain it."""
    prompts = [name for name in (*keys.PROMPTS, "context") if row.get(name) is not None]
    if isinstance(row.get("history"), str) and not prompts:
        # Stanford's SHP calls the prompt so.
        return chat_of({**row, "history": None, "prompt": row["history"]}, with_answer=False)
    if set(prompts) - {"input"} or (prompts and not _has_chat_column(row)):
        row = {name: value for name, value in row.items() if name not in keys.CHATS}
    elif not _has_chat_column(row):
        return None
    if not has_chat(row):
        return None
    chat = chat_of(row, with_answer=False)
    del chat.messages[_answer_start(chat.messages) :]
    return chat


def _has_chat_column(row: dict[str, Any]) -> bool:
    return any(is_given(row.get(name)) for name in keys.CHATS)


def _split(
    asked: list[Message] | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected), where the sides may repeat the prompt."""
    sides = dict(zip(SIDES, (chosen, rejected), strict=True))
    if asked is not None:
        for name, side in sides.items():
            if _repeats_prompt(side) and not _contains(side, asked):
                raise MalformedRow(f"`{name}` does not begin with the prompt")
    if all(map(_repeats_prompt, sides.values())):
        prompt = _common(chosen, rejected)
        return _with_own_system(prompt, asked), chosen[len(prompt) :], rejected[len(prompt) :]
    if asked is None:
        raise MalformedRow("there is no `prompt`, and `chosen` and `rejected` do not begin with the same messages")
    chosen, rejected = (_after(asked, side, name) for name, side in sides.items())
    return asked, chosen, rejected


def _repeats_prompt(side: list[Message]) -> bool:
    return bool(side) and side[0]["role"] != "assistant"


def _after(asked: list[Message], side: list[Message], name: str) -> list[Message]:
    """A side without the prompt, which it may repeat."""
    if not _repeats_prompt(side):
        return side
    if side[: len(asked)] != asked:
        raise MalformedRow(f"`{name}` does not begin with the prompt")
    return side[len(asked) :]


def _contains(side: list[Message], asked: list[Message]) -> bool:
    """Whether a whole chat holds the last message of the prompt, which may be all that the row repeats of it."""
    last = asked[-1] if asked else None
    return last is not None and any(
        message["role"] == last["role"] and text_of(message).strip() == text_of(last).strip() for message in side
    )


def _with_own_system(prompt: list[Message], asked: list[Message] | None) -> list[Message]:
    """The prompt of both sides, after the system text that only stands in a column."""
    texts = [message for message in asked or () if message["role"] == "system"]
    if not texts:
        return prompt
    own = [message for message in prompt if message["role"] == "system"]
    if not own:
        return [*texts, *prompt]
    if text_of(own[0]).strip() != text_of(texts[0]).strip():
        raise MalformedRow("the prompt and the answers' messages have two system texts that differ: remove one of them")
    return prompt


def _common(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The messages that both begin with; both go on with the assistant's."""
    most = min(len(chosen), len(rejected)) - 1
    same = 0
    while same < most and chosen[same] == rejected[same]:
        same += 1
    if same < most and _differ_in_images(chosen[same], rejected[same]):
        raise MalformedRow("the prompts of `chosen` and `rejected` show different images", IMAGE_PLACE)
    if not same or chosen[same]["role"] != "assistant" or rejected[same]["role"] != "assistant":
        raise MalformedRow("there is no `prompt`, and `chosen` and `rejected` do not begin with the same messages")
    return chosen[:same]


def _differ_in_images(one: Message, other: Message) -> bool:
    """Whether two messages say the same beside different images."""
    return have_images([one, other]) and one["role"] == other["role"] and text_of(one) == text_of(other)


def _beta(value: Any) -> float | None:
    if value is None:
        return None
    low, high = BETAS
    number = as_float(value)
    if number is None or not low <= number <= high:
        raise MalformedRow(f"`beta` is {str(value)[:40]!r}, not a number from {low:g} to {high:g}")
    return number
