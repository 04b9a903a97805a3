"""Preference pairs: two answers to one prompt, of which one is better. `reading/pairs.py` says which rows are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.data.images import NoImages, RowImages
from easydistill.data.images.reader import with_digests
from easydistill.data.messages import Chat, Message, Tool, have_images, identity_of, images_of
from easydistill.data.reading.pairs import SIDES, PairChat, Vote, pair_of
from easydistill.data.reading.row import RowChat
from easydistill.data.reading.samples import folder_of, notices_of, refuse_unknown_columns, refused_lines
from easydistill.data.reading.verdicts import Tie
from easydistill.data.records import CUT, FINISH_REASON, IdAssigner, Rejection, content_hash, cut_key, cut_marks
from easydistill.data.row_files import own_id, parse_rows, plain_value
from easydistill.errors import DataError

PAIR_SHAPES = (
    'rows are {"prompt": …, "chosen": …, "rejected": …}, each a text or messages; "beta" is optional; other columns '
    'are named by dataset.columns: {"prompt": …, "chosen": …, "rejected": …}'
)
TIE, UNPAIRED = "tie", "unpaired"
"""Why a row is not part of a pair: its answers are equally good; no answer to its prompt has the other label."""


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt."""

    id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    """The better answer: one message of the assistant, or several with the results of its tool calls between them."""
    rejected: tuple[Message, ...]
    beta: float | None = None
    """The pair's own β in the loss; None uses the config's."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The row's other fields: scores, margin, gap, the models that wrote the answers."""
    tools: tuple[Tool, ...] = field(default=(), kw_only=True)
    """The tools that the assistant may call."""
    template_kwargs: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """The row's own variables of the chat template."""

    @property
    def prompt_chat(self) -> Chat:
        """The prompt, with the chat's tools and variables."""
        return Chat(self.prompt, self.tools, self.template_kwargs)

    @property
    def chats(self) -> tuple[Chat, Chat]:
        """The whole chats: with the chosen answer, and with the rejected one."""
        prompt = self.prompt_chat
        return (
            prompt.with_messages((*self.prompt, *self.chosen)),
            prompt.with_messages((*self.prompt, *self.rejected)),
        )

    @property
    def prompt_hash(self) -> str:
        return content_hash(identity_of(self.prompt, self.prompt_chat))

    @property
    def images(self) -> tuple[str, ...]:
        """The digests of the pair's images."""
        return images_of(*self.prompt, *self.chosen, *self.rejected)

    @property
    def cut(self) -> tuple[bool, bool]:
        """Whether the chosen and the rejected answer were cut off: they have no end that could be learned."""
        chosen, rejected = (self.meta.get(cut_key(side)) == CUT for side in SIDES)
        return chosen, rejected


@dataclass
class PairReading:
    """What was read from a file of pairs."""

    pairs: list[Preference] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What the rows say and is not read, a line for each field."""

    def lines(self) -> list[str]:
        """What a user would not expect of the rows, a line each."""
        return [*refused_lines(len(self.pairs), self.rejected), *self.notices]


def read_pairs(
    path: str | Path,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    images: RowImages | None = None,
) -> PairReading:
    """Read pairs, giving each its id. Rows with a label (KTO) become pairs where two answers to a prompt differ in it.

    Args:
        path: of one file or several; see `row_files`.
        limit: read only this many rows.
        columns: `dataset.columns`: names of the columns, by what they hold.
        images: reads the images of rows; by default such rows are refused.

    Returns:
        The pairs, a rejection for each row that is not part of one, and what of the rows is not read.

    Raises:
        DataError: the file cannot be read at all, or no row of it is a pair.
    """
    ids = IdAssigner()
    found = PairReading()
    unread: Counter[str] = Counter()
    votes: dict[str, list[tuple[int, Any, Vote]]] = {}
    rows = 0

    images = images or NoImages()

    def parse(row: Any, source: str) -> PairChat | Vote | Tie:
        found = pair_of(row, columns=columns)
        if isinstance(found, PairChat) and have_images((*found.prompt, *found.chosen, *found.rejected)):
            found.prompt = with_digests(found.prompt, images, folder_of(source))
            found.chosen = with_digests(found.chosen, images, folder_of(source))
            found.rejected = with_digests(found.rejected, images, folder_of(source))
        elif isinstance(found, Vote) and have_images(found.chat.messages):
            found.chat.messages = with_digests(found.chat.messages, images, folder_of(source))
        return found

    for number, row, parsed in parse_rows(path, parse, ids, limit):
        rows += 1
        if isinstance(parsed, Rejection):
            found.rejected.append(parsed)
        elif isinstance(parsed, Tie):
            found.rejected.append(_rejection(path, number, row, TIE, parsed.detail, ids))
        elif isinstance(parsed, Vote):
            unread.update(parsed.chat.unread)
            votes.setdefault(_prompt_of(parsed), []).append((number, row, parsed))
        else:
            unread.update(parsed.unread)
            found.pairs.append(_preference(parsed, own_id(row), ids))
    _pair_votes(path, votes, found, ids)
    refuse_unknown_columns(path, columns, limit)
    if not found.pairs:
        first = f"\n    {found.rejected[0].detail}" if found.rejected else ""
        raise DataError(f"{path}: none of its {len(found.rejected)} rows is a pair; {PAIR_SHAPES}{first}")
    found.notices = notices_of(path, unread, rows)
    return found


def read_preferences(
    path: str | Path,
    *,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    images: RowImages | None = None,
) -> tuple[list[Preference], list[Rejection]]:
    """The pairs and rejections of `read_pairs`, for files that were written here."""
    found = read_pairs(path, limit=limit, columns=columns, images=images)
    return found.pairs, found.rejected


def _preference(parsed: PairChat, own: str | None, ids: IdAssigner) -> Preference:
    chat = Chat(tuple(parsed.prompt), parsed.tools, parsed.template_kwargs)
    sides = [side[0] if len(side) == 1 else side for side in (parsed.chosen, parsed.rejected)]
    identity = ids.assign([identity_of(chat.messages, chat), *sides], own)
    return Preference(
        identity,
        chat.messages,
        tuple(parsed.chosen),
        tuple(parsed.rejected),
        parsed.beta,
        parsed.rest,
        tools=parsed.tools,
        template_kwargs=parsed.template_kwargs,
    )


# --- rows with a label ------------------------------------------------------------------------------------


def _prompt_of(vote: Vote) -> str:
    chat = vote.chat
    prompt, _ = _asked_and_answered(vote)
    return content_hash(identity_of(prompt, Chat(tuple(prompt), chat.tools, chat.template_kwargs)))


def _asked_and_answered(vote: Vote) -> tuple[list[Message], list[Message]]:
    messages = vote.chat.messages
    start = len(messages)
    while start and messages[start - 1]["role"] == "assistant":
        start -= 1
    return messages[:start], messages[start:]


def _pair_votes(
    path: str | Path, votes: Mapping[str, list[tuple[int, Any, Vote]]], found: PairReading, ids: IdAssigner
) -> None:
    """Pair the good and the bad answers to each prompt; where there are more of one kind, the others serve again."""
    for members in votes.values():
        good, bad = ([member for member in members if member[2].good is wanted] for wanted in (True, False))
        if not good or not bad:
            missing = "bad" if good else "good"
            detail = f"there is no {missing} answer to the same prompt, so it makes no pair"
            found.rejected += [_rejection(path, number, row, UNPAIRED, detail, ids) for number, row, _ in members]
            continue
        for at in range(max(len(good), len(bad))):
            (_, better_row, better), (_, worse_row, worse) = good[at % len(good)], bad[at % len(bad)]
            prompt, chosen = _asked_and_answered(better)
            _, rejected = _asked_and_answered(worse)
            chat = better.chat
            names = own_id(better_row), own_id(worse_row)
            own = f"{names[0]}-{names[1]}" if names[0] and names[1] else None
            rest = {name: value for name, value in chat.rest.items() if name != FINISH_REASON}
            rest |= cut_marks(chosen=_is_cut(better.chat), rejected=_is_cut(worse.chat))
            parsed = PairChat(prompt, chosen, rejected, chat.tools, chat.template_kwargs, None, rest)
            found.pairs.append(_preference(parsed, own, ids))


def _is_cut(chat: RowChat) -> bool:
    return chat.rest.get(FINISH_REASON) == CUT


def _rejection(path: str | Path, number: int, row: Any, reason: str, detail: str, ids: IdAssigner) -> Rejection:
    identity = ids.assign([number, str(row)[:1000]])
    return Rejection(identity, "read", reason, f"{path}, row {number}: {detail}", 1, plain_value(row))
