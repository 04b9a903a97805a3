"""Files of rows → samples with their ids, rejected rows, and what of the rows is not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easydistill.data.images import NoImages, RowImages
from easydistill.data.images.reader import with_digests
from easydistill.data.messages import Chat, have_images, identity_of
from easydistill.data.reading.columns import has_column
from easydistill.data.reading.row import SHAPES, RowChat, chats_of
from easydistill.data.reading.unread import unread_lines
from easydistill.data.records import IdAssigner, Rejection, Sample, count_reasons
from easydistill.data.row_files import own_id, parse_rows, rows_of
from easydistill.data.row_files.hub_place import is_hub
from easydistill.data.spool import MOST_IN_MEMORY, MOST_TEXT_IN_MEMORY, Rows, Spool
from easydistill.errors import DataError

ROW = "_row"
"""Key in `Sample.meta` of the row's number in its file, from 1; not written."""
INCORRECT = "an answer marked as incorrect"


@dataclass
class Reading:
    """What was read from a file."""

    samples: Rows[Sample] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What the rows say and is not read, a line for each field."""

    def lines(self) -> list[str]:
        """What a user would not expect of the rows, a line each."""
        return [*refused_lines(len(self.samples), self.rejected), *self.notices]


def at_most(*limits: int | None) -> int | None:
    """The smallest of the limits that are set."""
    return min((limit for limit in limits if limit is not None), default=None)


def refused_lines(kept: int, rejected: Sequence[Rejection]) -> list[str]:
    """A line for each reason for which rows are refused, with their number and an example."""
    examples = {rejection.reason: rejection.detail for rejection in reversed(rejected)}
    return [
        f"{count:,} of {kept + len(rejected):,} rows are refused ({reason}), e.g. {examples[reason]}"
        for reason, count in count_reasons(rejected).items()
    ]


def read_rows(
    path: str | Path,
    *,
    labelled: bool | None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    images: RowImages | None = None,
) -> Reading:
    """Read rows, giving each its id. A row's other fields are kept in `Sample.meta`, and written again.

    Args:
        path: of one file or several; see `row_files`.
        labelled: whether rows must end with an answer. If False, answers in the file are dropped; if None, rows are
            taken as they are.
        limit: read only this many rows.
        columns: `dataset.columns`: names of the columns, by what they hold.
        images: reads the images of rows; by default such rows are refused.

    Returns:
        The samples, a rejection for each row that has none of the known shapes, and what of the rows is not read. A row
        with several answers becomes a sample for each.

    Raises:
        DataError: the file cannot be read at all, or no row of it can.
    """
    scan = RowScan(path, labelled=labelled, limit=limit, columns=columns, images=images)
    found = Reading()
    text = 0
    for item in scan:
        if isinstance(item, Rejection):
            found.rejected.append(item)
            continue
        found.samples.append(item)
        text += sum(len(message["content"]) for message in item.messages)
        if not isinstance(found.samples, Spool) and (len(found.samples) > MOST_IN_MEMORY or text > MOST_TEXT_IN_MEMORY):
            found.samples = Spool(found.samples)
    if not found.samples:
        raise _no_samples(path, found.rejected)
    found.notices = scan.notices
    return found


class RowScan:
    """Reads rows one by one, with the arguments of `read_rows`; none is kept.

    Args:
        ids: gives rows their ids.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        labelled: bool | None,
        limit: int | None = None,
        columns: Mapping[str, str] | None = None,
        images: RowImages | None = None,
        ids: IdAssigner | None = None,
    ) -> None:
        self._path, self._labelled, self._limit, self._columns = path, labelled, limit, columns
        self._images: RowImages = images or NoImages()
        self._ids = ids or IdAssigner()
        self.notices: list[str] = []
        """What of the rows is not read, a line for each field; complete after the last row."""

    def __iter__(self) -> Iterator[Sample | Rejection]:
        """
        Raises:
            DataError: the file cannot be read, or none of its rows has a column that the config names.
        """
        unread: Counter[str] = Counter()
        rows = 0
        for number, row, chats in parse_rows(self._path, self._parse, self._ids, self._limit):
            rows += 1
            if isinstance(chats, Rejection):
                yield chats
                continue
            for name, chat in zip(own_ids(row, len(chats)), chats, strict=True):
                yield _sample(chat, number, name, self._ids)
            unread.update(_unread(chats))
        refuse_unknown_columns(self._path, self._columns, self._limit)
        self.notices = notices_of(self._path, unread, rows)

    def _parse(self, row: Any, source: str) -> list[RowChat]:
        chats = chats_of(row, labelled=self._labelled, columns=self._columns)
        for chat in chats:
            if have_images(chat.messages):
                chat.messages = with_digests(chat.messages, self._images, folder_of(source))
        return chats


def _unread(chats: Sequence[RowChat]) -> set[str]:
    """What of a row is not read, by the chats that were made of it."""
    names = {name for chat in chats for name in chat.unread}
    wrong = len(chats) > 1 and any(chat.rest.get("correct") == 0 for chat in chats)
    return names | {INCORRECT} if wrong else names


def _no_samples(path: str | Path, rejected: Sequence[Rejection]) -> DataError:
    if not rejected:
        return DataError(f"{path}: there are no rows in it; {SHAPES}")
    return DataError(f"{path}: none of its {len(rejected)} rows can be used; {SHAPES}\n    {rejected[0].detail}")


def folder_of(source: str) -> Path | None:
    """The folder that the paths in rows are relative to; None for a hub's data set."""
    return None if is_hub(source) else Path(source).parent


def read_samples(
    path: str | Path,
    *,
    labelled: bool | None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    images: RowImages | None = None,
) -> tuple[Rows[Sample], list[Rejection]]:
    """The samples and rejections of `read_rows`, for files that were written here."""
    found = read_rows(path, labelled=labelled, limit=limit, columns=columns, images=images)
    return found.samples, found.rejected


def _sample(chat: RowChat, number: int, name: str | None, ids: IdAssigner) -> Sample:
    messages = tuple(chat.messages)
    content = identity_of(messages, Chat(messages, chat.tools, chat.template_kwargs))
    return Sample(
        ids.assign(content, name),
        messages,
        {ROW: number, **chat.rest},
        tools=chat.tools,
        template_kwargs=chat.template_kwargs,
    )


def own_ids(row: Any, count: int) -> list[str | None]:
    """The ids that a row brings for its samples: its own, numbered if there are several."""
    own = own_id(row)
    if own is None or count == 1:
        return [own] * count
    return [f"{own}-{number}" for number in range(1, count + 1)]


def refuse_unknown_columns(path: str | Path, columns: Mapping[str, str] | None, limit: int | None) -> None:
    """Check that each column which the config names is in some row.

    Raises:
        DataError: one is in none.
    """
    missing = dict(columns or {})
    if not missing:
        return
    names: dict[str, None] = {}
    for number, row in enumerate(rows_of(path), start=1):
        if limit is not None and number > limit:
            break
        missing = {held: column for held, column in missing.items() if not has_column(row, column)}
        if not missing:
            return
        if isinstance(row, dict):
            names.update(dict.fromkeys(map(str, row)))
    for held, column in missing.items():
        raise DataError(
            f"{path}: no row has the column {column!r}, which dataset.columns.{held} names\n    → the columns are "
            f"{', '.join(list(names)[:20]) or 'none'}"
        )


def notices_of(path: str | Path, unread: Mapping[str, int], rows: int) -> list[str]:
    """The lines to tell of a file."""
    incorrect = unread.get(INCORRECT, 0)
    told = {name: count for name, count in unread.items() if name != INCORRECT}
    lines = unread_lines(told, rows, str(path))
    if incorrect:
        lines.append(
            f"{path}: {incorrect:,} of {rows:,} rows have {INCORRECT} (`correct` is 0); the operator cot_selection "
            "takes the correct ones"
        )
    return lines
