"""The report as data: sections of blocks. `report.html.jinja` draws them as HTML, `markdown.py` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Only = Literal["", "html", "md"]
"""The one format that has a part; by default both."""
Bars = tuple[tuple[float, str], ...]
"""(share of the full width, CSS class)."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a section."""

    only: Only = ""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Column:
    title: str
    style: str = "num"
    """CSS classes of its cells; the heading has the first one. Cells of `num` are aligned right."""
    only: Only = ""


@dataclass(frozen=True)
class Cell:
    text: str
    style: str = ""
    arrow: str = ""
    note: str = ""
    """Small below the text; in Markdown, in brackets after it."""
    lines: tuple[str, ...] = ()
    """The text in parts; HTML draws each on a line of its own."""


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    """Small lines below the name; in Markdown, see `Table.note`."""
    bars: Bars = ()
    link: str = ""
    """Where its name leads."""

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(cell.text for cell in self.cells)


@dataclass(frozen=True)
class Table(Block):
    title: str
    """Heading of the column of names."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    style: str = ""
    bars: Literal["bar", "bars"] = "bar"
    """`bar` is one narrow bar; `bars` are several, which small screens show below the name."""
    names: Literal["", "code", "token"] = ""
    note: str = ""
    """How Markdown appends a row's notes to its name, such as " ({})"; empty where a column holds them."""
    footnotes: tuple[str, ...] = ()

    @property
    def has_bars(self) -> bool:
        return any(row.bars for row in self.rows)


def columns(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(map(Column, titles))


def row(name: str, *cells: str | Cell, notes: Sequence[str] = (), bars: Bars = ()) -> Row:
    made = tuple(Cell(cell) if isinstance(cell, str) else cell for cell in cells)
    return Row(name, made, tuple(note for note in notes if note), bars)


@dataclass(frozen=True)
class Step:
    """A step of a funnel: how many rows are left after it."""

    name: str
    rows: int
    bars: Bars
    """Parts of one bar."""
    lost: tuple[tuple[str, int], ...] = ()
    """Reason → rows rejected at this step."""
    note: str = ""
    """What was lost, in words, where there is one reason only."""


@dataclass(frozen=True)
class Funnel(Block):
    steps: tuple[Step, ...]
    heads: tuple[str, str, str]
    """Headings of the names, the rows that are left, and the rows that are lost."""


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str
    style: str = "intro"
    """CSS class; a `heading` is that of the blocks that follow."""
    lead: str = ""
    """Its first words, in bold."""


@dataclass(frozen=True)
class Pairs(Block):
    """Names with a value each."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code(Block):
    text: str
    language: str = "text"
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class HtmlBlock(Block):
    """A part that Markdown does without."""

    only: Only = "html"


@dataclass(frozen=True)
class Key(HtmlBlock):
    """What the colours of the figure above mean: (CSS class, meaning)."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Charts(HtmlBlock):
    """A chart for wide screens, and the same for narrow ones."""

    svgs: tuple[str, ...]
    attributes: str = ""


@dataclass(frozen=True)
class Sample(Block):
    """A row with its texts."""

    id: str
    parts: tuple[tuple[str, str, str], ...]
    """(heading, text, CSS class)."""
    marks: tuple[tuple[str, str], ...] = ()
    """(name, value)."""
    reason: str = ""
    """Why it was rejected."""
    detail: str = ""
    images: tuple[str, ...] = ()
    """Thumbnails, by their paths from the report."""


@dataclass(frozen=True)
class Fold(Block):
    """Blocks that HTML hides behind a summary."""

    summary: str
    blocks: tuple[Block, ...]
    open: bool = False


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    link: str
    """Its title in the list of sections."""
    blocks: tuple[Block, ...]
    style: str = ""
    only: Only = ""


def compared(values: Sequence[float | None], full: float | None) -> Bars:
    """Bars for the student before and after training, and its teacher; none for values that no length can show."""
    known = [value for value in values if value is not None]
    longest = max(known, default=0.0)
    if longest <= 0 or min(known) < 0:
        return ()
    kinds = ("before", "after", "teacher")[: len(values)]
    return tuple(((value or 0.0) / (full or longest), kind) for value, kind in zip(values, kinds, strict=True))
