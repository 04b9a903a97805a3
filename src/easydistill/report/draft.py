"""The student as a draft model for its teacher, in speculative decoding."""

from __future__ import annotations

from collections.abc import Iterator

from easydistill.data.numbers import as_float
from easydistill.evaluation.metrics.acceptance import tokens_per_pass
from easydistill.report.collect import Facts
from easydistill.report.document import Section, Table, Text, columns, row

DRAFTED = range(1, 9)
_WORDS = (
    "Tokens that each pass of the teacher gives, if the student drafts some before it, by the share of drafts that are "
    "accepted (Leviathan et al. 2023, equation 1). How much faster that is depends on what a pass of each model takes."
)


def draft_sections(facts: Facts) -> Iterator[Section]:
    """Expected tokens per pass for 1 to 8 drafted tokens; nothing where acceptance was not measured."""
    after = {found.name: as_float(found.after) for found in facts.metrics}
    sampled, greedy = after.get("acceptance"), after.get("agreement")
    if sampled is None:
        return
    known = [("Sampled, temperature 1", sampled), *([("Greedy", greedy)] if greedy is not None else [])]
    rows = tuple(
        row(f"{drafted} drafted", *(f"{tokens_per_pass(share, drafted):.2f}" for _, share in known))
        for drafted in DRAFTED
    )
    heads = columns(*(f"{name}: {share:.1%} accepted" for name, share in known))
    yield Section("draft", "As a draft model", "Draft model", (Text(_WORDS), Table("Drafts", heads, rows, "tight")))
