"""The report as Markdown, whatever characters its texts hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from easydistill.report import document as doc
from easydistill.report.collect import Answers
from easydistill.report.comparison.sections import Sides
from easydistill.report.disagreement import Difference, Differences
from easydistill.report.figures import probability
from easydistill.report.sections import Report

CUT_AT = 320
"""Characters of a long text that are shown before it is unfolded."""
CUT_LINES = 7
TITLE_AT = 120
"""Characters of a prompt that are its heading."""


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


def report(given: Report) -> str:
    """The whole report."""
    summary = given.summary
    job = f" · {code(summary.job_type)}" if summary.job_type else ""
    when = f" · {md(given.when)}" if given.when else ""
    head = f"**{md(summary.status)}**{job} · {md(given.time)}{when}"
    parts = [f"# {md(summary.name)}", head, _flow(given), md(given.lede)]
    if given.banner is not None:
        _, headline, text = given.banner
        parts += [f"> **{md(headline)}.** {md(text)}", fenced(summary.error) if summary.error else ""]
    for section in given.sections:
        if section.only != "html":
            parts += [f"## {md(section.title)}", _drawn(section.blocks)]
    return _joined(parts) + "\n"


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _flow(given: Report) -> str:
    boxes = (
        f"{box.name.lower() if at else box.name}: {md(box.value)}{f' ({md(box.more)})' if box.more else ''}"
        for at, box in enumerate(given.flow)
    )
    return " → ".join(boxes)


def _drawn(blocks: Iterable[doc.Block]) -> str:
    return _joined(draw(block) for block in blocks if block.only != "html")


def draw(block: doc.Block) -> str:
    """A block as Markdown."""
    match block:
        case doc.Text():
            return _text(block)
        case doc.Pairs(items=items):
            return "\n".join(f"- {md(name)}: {md(value)}" for name, value in items)
        case doc.Code():
            return fenced(block.text, block.language)
        case doc.Fold():
            return _drawn(block.blocks)
        case doc.Sample():
            return _sample(block)
        case Answers():
            return _joined(_answers(block))
        case Sides():
            return _joined(_sides(block))
        case Differences():
            head = ["In the answer", "KL", "Teacher", f"Student {block.when}"]
            return grid(head, ["---", "--:", "---", "---"], map(_difference, block.items))
        case doc.Funnel():
            return grid(block.heads, ["---", "--:", "---"], map(_step, block.steps))
        case doc.Table():
            return table(block)
    raise TypeError(block)


def _text(block: doc.Text) -> str:
    if block.style == "heading":
        return f"### {md(block.text)}"
    return f"- **{md(block.lead)}** {md(block.text)}" if block.lead else md(block.text)


def _sample(block: doc.Sample) -> str:
    if block.reason:
        head = f"{code(block.reason)}: {md(beginning(block.detail))}" if block.detail else code(block.reason)
    else:
        head = "; ".join([code(block.id) if block.id else "no id", *(f"{md(n)}: {md(v)}" for n, v in block.marks)])
    images = " ".join(f"![image]({path})" for path in block.images)
    texts = (part for name, text, _ in block.parts for part in (f"{name}:" if name else "", fenced(beginning(text))))
    return _joined([head, images, *texts])


def _answers(block: Answers) -> Iterator[str]:
    for item in block.items:
        question = " ".join((item.prompt[-1].text if item.prompt else item.id).split())
        yield f"### {md(question if len(question) <= TITLE_AT else f'{question[:TITLE_AT]}…')}"
        yield " ".join(f"![image]({path})" for path in item.images)
        for name, text in (
            (block.reference, item.teacher),
            ("Student before", item.before),
            ("Student after", item.after),
        ):
            yield f"{name}: {md(block.missing)}" if text is None else f"{name}:\n\n{fenced(text)}"


def _sides(block: Sides) -> Iterator[str]:
    for item in block.items:
        question = " ".join((item.prompt[-1].text if item.prompt else item.id).split())
        yield f"### {md(question if len(question) <= TITLE_AT else f'{question[:TITLE_AT]}…')}"
        yield " ".join(f"![image]({path})" for path in item.images)
        for side in item.sides:
            head = f"{md(side.who)} ({side.score})" if side.score else md(side.who)
            yield f"{head}: n/a" if side.text is None else f"{head}:\n\n{fenced(side.text)}"


def _difference(item: Difference) -> list[str]:
    sides = (
        ", ".join(f"{code(it.text)} {md(probability(it.probability))}" for it in side[:3])
        for side in (item.teacher, item.student)
    )
    return [f"{md(item.context)} **{md(item.token)}**".lstrip(), f"{item.kl:.2f}", *sides]


def _step(step: doc.Step) -> list[str]:
    lost = ", ".join(f"{rows:,} {code(reason)}" for reason, rows in step.lost)
    return [md(step.name), f"{step.rows:,}", md(step.note) + lost]


def table(given: doc.Table) -> str:
    """A table, with footnotes below it."""
    places = [at for at, column in enumerate(given.columns) if column.only != "html"]
    head = [md(given.title), *(md(given.columns[at].title) for at in places)]
    align = ["---", *("--:" if "num" in given.columns[at].style else "---" for at in places)]
    rows = ([_name(given, row), *(_cell(row.cells[at]) for at in places)] for row in given.rows)
    return "\n\n".join([grid(head, align, rows), *map(md, given.footnotes)])


def _name(given: doc.Table, row: doc.Row) -> str:
    name = code(row.name) if given.names else md(row.name)
    name = f"[{name}]({row.link})" if row.link else name
    return name + "".join(given.note.format(md(note)) for note in row.notes)


def _cell(cell: doc.Cell) -> str:
    note = f"({cell.note})" if cell.note else ""
    return md(" ".join(part for part in (cell.arrow, cell.text, note) if part))


def grid(head: Sequence[str], align: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    first = next(lines)
    return "\n".join([first, f"|{'|'.join(align)}|", *lines])
