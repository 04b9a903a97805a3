"""How far the student is from its teacher, token by token: the evaluation's `disagreement.json`, and its tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easydistill.data.numbers import as_float
from easydistill.report.document import Block, Column, Table, columns, compared, row
from easydistill.report.figures import Figure, or_missing, percentage
from easydistill.report.values import as_dict, as_int, as_text, json_object, record

DISAGREEMENT_FILE = "disagreement.json"
SIDES = ("before", "after")
LARGEST_READ = 100
TOKENS_READ = 50
RANKED_READ = 10
MOST = 2**53
"""A count of tokens must be below this."""
CONTEXT_LIMIT = 200
TOKEN_LIMIT = 48
_JOINERS = "\u200c\u200d"
_SEEN = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
_NOT_SEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SPACE = "Zs"


@dataclass(frozen=True)
class Ranked:
    """One of a model's most likely tokens."""

    text: str
    probability: float
    in_answer: bool
    """Whether it is the answer's own token."""


@dataclass(frozen=True)
class Difference:
    """A token of an answer at which the two models differ widely."""

    row: str
    position: int | None
    context: str
    """The answer before the token; empty for its first token."""
    token: str
    kl: float
    teacher: tuple[Ranked, ...]
    student: tuple[Ranked, ...]
    teacher_probability: float | None
    student_probability: float | None


@dataclass(frozen=True)
class Differences(Block):
    """Tokens at which teacher and student differ, each with the likeliest tokens of both."""

    items: tuple[Difference, ...]
    when: str
    """Which student this is: `before` or `after` training."""


@dataclass(frozen=True)
class CostlyToken:
    """A token of the vocabulary, over all its occurrences."""

    token: str
    count: int
    kl: float


@dataclass(frozen=True)
class Side:
    """The student before or after training."""

    figures: dict[str, float]
    tokens: int | None
    not_finite: int
    positions: dict[tuple[int, int], tuple[int, float]]
    """(first, last) position in the answer → (tokens, mean KL divergence) there."""
    largest: tuple[Difference, ...]
    costly: tuple[CostlyToken, ...]


@dataclass(frozen=True)
class Disagreement:
    """Both sides; None where one was not measured."""

    before: Side | None
    after: Side | None

    @property
    def latest(self) -> Side | None:
        return self.after or self.before


def read_disagreement(folders: list[Path]) -> Disagreement | None:
    """The comparison that one of the complete stages left in its directory, or None."""
    for folder in folders:
        found = json_object(folder / DISAGREEMENT_FILE)
        before, after = (_side(as_dict(found.get(name))) for name in SIDES)
        if before is not None or after is not None:
            return Disagreement(before, after)
    return None


def _side(value: dict[str, Any]) -> Side | None:
    known = ((name, as_float(number)) for name, number in value.items())
    figures = {name: number for name, number in known if number is not None}
    side = Side(
        figures=figures,
        tokens=as_int(value.get("tokens")),
        not_finite=as_int(value.get("not_finite")) or 0,
        positions=dict(_positions(value.get("kl_by_position"))),
        largest=tuple(_differences(_listed(value.get("largest"), LARGEST_READ))),
        costly=tuple(_costly(_listed(value.get("by_token"), TOKENS_READ))),
    )
    return side if side.figures or side.positions or side.largest or side.costly else None


def _listed(value: Any, most: int) -> list[dict[str, Any]]:
    return [as_dict(item) for item in value[:most]] if isinstance(value, list) else []


def _positions(value: Any) -> Iterator[tuple[tuple[int, int], tuple[int, float]]]:
    for item in _listed(value, 64):
        first, last, kl = as_int(item.get("first")), as_int(item.get("last")), as_float(item.get("kl"))
        if first is not None and last is not None and kl is not None and 0 < first <= last and kl >= 0:
            yield (first, last), (as_int(item.get("tokens")) or 0, kl)


def _differences(items: list[dict[str, Any]]) -> Iterator[Difference]:
    for item in items:
        kl, token = as_float(item.get("kl")), as_dict(item.get("token"))
        if kl is None:
            continue
        sides = {side: tuple(_ranked(item.get(side), token)) for side in ("teacher", "student")}
        yield record(Difference, item, context=_context(item), token=token_text(token), kl=kl, **sides)


def _context(item: dict[str, Any]) -> str:
    text = as_text(item.get("context"))
    cut = item.get("context_is_cut") is True or len(text) > CONTEXT_LIMIT
    return f"{'…' if cut else ''}{visible(text[-CONTEXT_LIMIT:])}"


def _ranked(value: Any, answer: dict[str, Any]) -> Iterator[Ranked]:
    for item in _listed(value, RANKED_READ):
        probability = as_float(item.get("probability"))
        if probability is not None:
            same = item.get("id") is not None and item.get("id") == answer.get("id")
            yield Ranked(token_text(item), probability, same)


def _costly(items: list[dict[str, Any]]) -> Iterator[CostlyToken]:
    for item in items:
        count, kl = as_int(item.get("count")), as_float(item.get("kl"))
        if count is not None and kl is not None and 0 <= count < MOST:
            yield CostlyToken(token_text(as_dict(item.get("token"))), count, kl)


# --- tokens as text -------------------------------------------------------------------------------------------------


def token_text(token: dict[str, Any]) -> str:
    """A token with every character visible; with its id where the text alone is ambiguous."""
    text = as_text(token.get("text"))
    number = as_int(token.get("id"))
    seen = visible(text[:TOKEN_LIMIT], spaces=True)
    if text and "\ufffd" not in text:
        return f"{seen}{'…' if len(text) > TOKEN_LIMIT else ''}"
    return f"{seen}#{number}" if number is not None else seen or "?"


def visible(text: str, *, spaces: bool = False) -> str:
    """Text with a sign or a code point in place of every invisible or direction-changing character.

    Joiners, which shape the letters next to them, stay unless the text is one alone.
    """
    return "".join(_seen(character, spaces, alone=len(text) == 1) for character in text)


def _seen(character: str, spaces: bool, *, alone: bool) -> str:
    if character == " ":
        return _SEEN[" "] if spaces else " "
    if character in _SEEN:
        return _SEEN[character]
    category = unicodedata.category(character)
    named = spaces and category == _SPACE
    if not named and (category not in _NOT_SEEN or (character in _JOINERS and not alone)):
        return character
    return f"‹U+{ord(character):04X}›"


# --- tables ---------------------------------------------------------------------------------------------------------

_MASS = "teacher_mass_on_teacher_top"
_OVERLAP = "share of the teacher's {0} likeliest tokens that are among the student's {0}"
_SHARED = {
    "overlap": (percentage("Top-{0} overlap", _OVERLAP), ""),
    "student_mass_on_teacher_top": (
        percentage(
            "Student's mass on the teacher's top {0}",
            "the student's probability for the teacher's {0} likeliest tokens",
        ),
        _MASS,
    ),
    "teacher_mass_on_student_top": (
        percentage(
            "Teacher's mass on the student's top {0}",
            "the teacher's probability for the student's {0} likeliest tokens",
        ),
        _MASS,
    ),
    "student_entropy": (
        Figure("Entropy", "nats per token; lower means that fewer tokens are likely"),
        "teacher_entropy",
    ),
}
"""Figures, each with the name of the figure that a student equal to its teacher would have; without one, that is 1."""


def shares_table(found: Disagreement) -> Table:
    """Overlap, probability mass and entropy, as far as they were measured."""
    sides = [side.figures if side is not None else {} for side in (found.before, found.after)]
    top = format(_first("top", sides) or 10, "g")
    rows = []
    for name, (figure, of_teacher) in _SHARED.items():
        before, after = (side.get(name) for side in sides)
        if before is None and after is None:
            continue
        values = (before, after, _first(of_teacher, sides) if of_teacher else 1.0)
        texts = (or_missing(value, figure.form) for value in values)
        hint = figure.unit.format(top)
        rows.append(row(figure.label.format(top), *texts, notes=[hint], bars=compared(values, figure.full)))
    heads = (Column("Before", "num before"), Column("After", "num after"), Column("Teacher", "num goal"))
    return Table("Shared", heads, tuple(rows), style="shares", bars="bars", note=": {}")


def _first(name: str, sides: list[dict[str, float]]) -> float | None:
    return next((side[name] for side in sides if name in side), None)


@dataclass(frozen=True)
class PositionLine:
    """One range of positions, before and after training."""

    label: str
    tokens: int
    before: float | None
    after: float | None


def position_lines(found: Disagreement) -> list[PositionLine]:
    """Both sides' ranges joined by their positions, in order."""
    before, after = (side.positions if side is not None else {} for side in (found.before, found.after))
    lines = []
    for (first, last), (tokens, _) in sorted((before | after).items()):
        label = str(first) if first == last else f"{first}–{last}"
        values = (side.get((first, last), (0, None))[1] for side in (before, after))
        lines.append(PositionLine(label, tokens, *values))
    return lines


def positions_table(lines: list[PositionLine]) -> Table:
    sides = ([or_missing(value, ".3f") for value in (line.before, line.after)] for line in lines)
    rows = (row(line.label, f"{line.tokens:,}", *texts) for line, texts in zip(lines, sides, strict=True))
    return Table("Token of the answer", columns("Measured", "KL before", "KL after"), tuple(rows), only="md")


def costly_table(items: tuple[CostlyToken, ...], most: float) -> Table:
    """The tokens with the largest summed divergence; `most` is the sum that fills a bar."""
    rows = []
    for item in items:
        total = item.kl * item.count
        texts = (f"{item.count:,}", f"{item.kl:.2f}", f"{total:.1f}")
        rows.append(row(item.token, *texts, bars=((total / most, "after"),)))
    return Table("Token", columns("Times", "Mean KL", "Sum"), tuple(rows), style="times tight", names="token")
