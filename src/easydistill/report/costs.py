"""What models behind APIs have cost: bills as a table, with what a reader must know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from easydistill.report import document as doc
from easydistill.report.collect import Facts
from easydistill.report.figures import MISSING, in_words, or_missing, plural
from easydistill.report.synthesis import Spent, bills_of, is_synthesis

HEADS = ("Requests answered", "Tokens in", "Tokens out", "Cost")


def bill_cells(bill: Spent) -> tuple[str, str, str, str]:
    """A model's bill under `HEADS`."""
    return (
        or_missing(bill.answers),
        _tokens(bill.prompt_tokens, bill.cached_prompt_tokens, "cached"),
        _tokens(bill.completion_tokens, bill.reasoning_tokens, "reasoning"),
        or_missing(bill.cost, ",.6g"),
    )


def _tokens(number: int | None, part: int | None, name: str) -> str:
    return f"{or_missing(number)} ({part:,} {name})" if number is not None and part else or_missing(number)


def bill_notes(bills: Sequence[Spent]) -> list[str]:
    """What the reader must know about the figures: above all why one is missing."""
    uncounted = sum(bill.answers_without_counts for bill in bills)
    notes = []
    if uncounted:
        sums = "The token counts are without them."
        notes.append(f"The server reported no token counts for {plural(uncounted, 'answer')}. {sums}")
    if any(bill.cost is None and not bill.answers_without_counts for bill in bills):
        notes.append("The cost is n/a because the config gives no prices (inference.prices).")
    elif bills and uncounted:
        notes.append("The cost is n/a for the same reason.")
    elif any(not bill.prices_as_of for bill in bills):
        notes.append("The cost is in the currency of the config's prices.")
    return [*notes, *built_in_notes(bills)]


def built_in_notes(bills: Sequence[Spent]) -> list[str]:
    """Which prices are built in, and of when."""
    dates = dict.fromkeys((bill.prices_as_of, bill.currency) for bill in bills if bill.prices_as_of)
    return [
        f"Built-in price of {date}, in {currency}: as of that date; inference.prices overrides it."
        for date, currency in dates
    ]


def total(bills: Sequence[Spent], name: str) -> float | None:
    """The sum of a figure over all models; None if one is unknown."""
    numbers = [getattr(bill, name) for bill in bills]
    return None if None in numbers else sum(numbers)


def bills_words(bills: Sequence[Spent]) -> str:
    """Requests, tokens and cost in a sentence."""
    answers = total(bills, "answers")
    requests = MISSING if answers is None else plural(int(answers), "request")
    read, written = (or_missing(total(bills, f"{kind}_tokens")) for kind in ("prompt", "completion"))
    return f"It took {requests}, {read} tokens in and {written} out; cost {or_missing(total(bills, 'cost'), ',.6g')}."


def own_bills(facts: Facts) -> list[tuple[str, Spent]]:
    """(stage, bill) of a job's stages, without those of synthesis, whose sections have them."""
    found = ((stage.name, stage.metrics) for stage in facts.stages if not is_synthesis(stage.metrics))
    return [(name, bill) for name, metrics in found for bill in bills_of(metrics)]


def cost_sections(facts: Facts) -> Iterator[doc.Section]:
    """What the models cost that a job's stages have asked."""
    found = own_bills(facts)
    if not found:
        return
    rows = tuple(doc.row(in_words(bill.role), *bill_cells(bill), notes=[f"stage {stage}"]) for stage, bill in found)
    notes = tuple(bill_notes([bill for _, bill in found]))
    intro = doc.Text("Models behind APIs, over all attempts in this directory.")
    table = doc.Table("Model", doc.columns(*HEADS), rows, note=" ({})", footnotes=notes)
    yield doc.Section("cost", "Cost", "Cost", (intro, table))
