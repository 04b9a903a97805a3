"""Text, code and tables as Markdown, whatever characters they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from easydistill.report.table import Cell, Row, Step, Table

CUT_AT = 320
"""Characters of a long text that are shown before it is unfolded."""
CUT_LINES = 7


def md(text: str) -> str:
    """Plain text on one line, every special character escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(text).split()))


def _fence(text: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def code(text: str) -> str:
    """Inline code that is valid inside a table too."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = _fence(flat, 1)
    return f"{fence} {flat} {fence}" if "`" in flat else f"{fence}{flat}{fence}"


def fenced(text: str, language: str = "text") -> str:
    """A code block with a fence longer than any in the text."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def beginning(text: str) -> str:
    """The beginning of a long text, ending in "…"; a short text unchanged."""
    start = "\n".join(text.split("\n")[:CUT_LINES])
    if len(start) > CUT_AT:
        # Between words, if there is a space near the limit.
        place = start.rfind(" ", CUT_AT - 40, CUT_AT)
        start = start[: place if place > 0 else CUT_AT]
    return text if len(start) == len(text) else f"{start.rstrip()}…"


def grid(head: Sequence[str], align: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    first = next(lines)
    return "\n".join([first, f"|{'|'.join(align)}|", *lines])


def table(given: Table) -> str:
    """A table, with footnotes below it."""
    places = [at for at, column in enumerate(given.columns) if column.only != "html"]
    head = [md(given.title), *(md(given.columns[at].title) for at in places)]
    align = ["---", *("--:" if "num" in given.columns[at].style else "---" for at in places)]
    rows = ([_name(given, row), *(_cell(row.cells[at]) for at in places)] for row in given.rows)
    return "\n\n".join([grid(head, align, rows), *map(md, given.footnotes)])


def _name(given: Table, row: Row) -> str:
    name = code(row.name) if given.names else md(row.name)
    return name + "".join(given.note.format(md(note)) for note in row.notes)


def _cell(cell: Cell) -> str:
    note = f"({cell.note})" if cell.note else ""
    return md(" ".join(part for part in (cell.arrow, cell.text, note) if part))


def funnel(steps: Sequence[Step], name: str, left: str, lost: str) -> str:
    """A funnel as a table under these three headings."""
    rows = (
        [md(step.name), f"{step.rows:,}", md(step.note) + ", ".join(f"{rows:,} {code(why)}" for why, rows in step.lost)]
        for step in steps
    )
    return grid([name, left, lost], ["---", "--:", "---"], rows)
